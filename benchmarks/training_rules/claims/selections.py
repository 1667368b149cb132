"""Flexora and DiffoRA: is the choice better than a random one of the same budget, and is it the same for every seed?

DiffoRA has ``share: none`` here, so that a choice is all that differs from its control.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, groupby
from statistics import fmean
from typing import Any

from shared import Budget, scores, train

from vision_lowrank.selection.controls import jaccard, random_selection
from vision_lowrank.selection.gates import Unit
from vision_lowrank.studies.run import summarise

DRAWS = 200
METHODS: dict[str, tuple[tuple[str, ...], Callable[[Unit], str]]] = {
    "flexora": ((), lambda unit: unit.tower),
    "diffora": (("selection.share=none",), lambda unit: unit.block),
}


def selection(budget: Budget) -> dict[str, Any]:
    """Compute accuracies of each method's choice and of a random one, per seed.

    Also tell how far choices agree, and would by chance.

    A random choice has as many blocks of each tower (Flexora) or modules of each block (DiffoRA) as the seed's own, and
    so as many parameters.
    """
    found: dict[str, Any] = {"lora": summarise(scores(budget.train(seed, "lora")) for seed in budget.seeds)}
    for method, (changes, group) in METHODS.items():
        own, random, choices = [], [], []
        for seed in budget.seeds:
            warmup = (f"selection.warmup={budget.steps // 5}",) if method == "diffora" else ()
            engine = budget.train(seed, method, f"selection.steps={budget.steps}", *warmup, *changes)
            units = engine.task.gates.units
            choices.append(engine.task.config.selection.choose(engine.task.gates))
            own.append(scores(engine))
            control = train(budget.config("lora"), seed, paths=like(units, choices[-1], group, seed))
            random.append(scores(control))
        found[method] = {
            "chosen": summarise(own),
            "random": summarise(random),
            "share": fmean(len(choice) for choice in choices) / sum(len(unit.layers) for unit in units),
            "jaccard": agreement(choices),
            "jaccard_by_chance": fmean(
                agreement([like(units, choice, group, DRAWS * i + draw) for i, choice in enumerate(choices)])
                for draw in range(DRAWS)
            ),
            "choices": dict(zip(map(str, budget.seeds), choices, strict=True)),
        }
    return found


def like(units: Sequence[Unit], choice: Sequence[str], group: Callable[[Unit], str], seed: int) -> list[str]:
    """Draw a random choice with as many units of each group as `choice` has."""
    paths = []
    for number, (_, members) in enumerate(groupby(units, group)):
        pool = list(members)
        if taken := sum(unit.layers[0] in choice for unit in pool):
            paths += random_selection(pool, taken, 1000 * seed + number)
    return paths


def agreement(choices: Sequence[Sequence[str]]) -> float:
    """Compute the mean Jaccard overlap of every two choices; 1 for a single one."""
    return fmean([jaccard(*pair) for pair in combinations(choices, 2)] or [1.0])
