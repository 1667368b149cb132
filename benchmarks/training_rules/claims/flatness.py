"""GLAD and GGPO: do they end in flatter places than LoRA, and does noise keep the training loss from rising again?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from shared import Budget, logged, scores, sharpness

from vision_lowrank.studies.run import summarise

WINDOW, LAST = 10, 20


def glad_sharpness(budget: Budget) -> dict[str, Any]:
    """Measure sharpness after LoRA, GLAD and SAM, and the cosine between the gradients at θ and nearby.

    The cosine is a mean over the steps.
    """
    return {
        "lora": flatness(budget, "lora"),
        "glad": flatness(budget, "glad"),
        "sam": flatness(budget, "glad", "rule.strength=1.0"),
    }


def ggpo_sharpness(budget: Budget) -> dict[str, Any]:
    """Measure sharpness after LoRA, GGPO and MGPO, and the training loss's course by rank and learning rate."""
    methods = ("lora", "ggpo", "mgpo")
    curves = [
        {"method": method, "r": r, "rate": rate, **course(budget, method, r, rate)}
        for r in (4, 64)
        for rate in (1, 4)
        for method in methods
    ]
    return {"sharpness": {method: flatness(budget, method) for method in methods}, "curves": curves}


def flatness(budget: Budget, recipe: str, *changes: str) -> dict[str, dict[str, float]]:
    """Compute accuracies and sharpness over the seeds."""
    found = []
    for seed in budget.seeds:
        engine = budget.train(seed, recipe, *changes)
        cosine = {"cosine": fmean(logged(engine, "glad_cosine"))} if recipe == "glad" else {}
        found.append(scores(engine) | sharpness(engine) | cosine)
    return summarise(found)


def course(budget: Budget, method: str, r: int, rate: int) -> dict[str, float]:
    """Follow the logged loss at the first seed, at `rate` times the recipe's learning rate.

    ``final`` is the mean of the last steps, ``rise`` how far a moving average climbs again after its minimum.
    """
    lr = rate * budget.config(method).engine.lr
    losses = logged(budget.train(budget.seeds[0], method, f"adapter.r={r}", f"engine.lr={lr}"), "loss")
    return {"final": fmean(losses[-LAST:]), "rise": largest_rise(losses)}


def largest_rise(losses: Sequence[float]) -> float:
    """Compute, of the moving average over WINDOW steps, its maximum after the minimum, less the minimum."""
    smooth = [fmean(losses[i : i + WINDOW]) for i in range(max(1, len(losses) - WINDOW + 1))]
    lowest = smooth.index(min(smooth))
    return max(smooth[lowest:]) - smooth[lowest]
