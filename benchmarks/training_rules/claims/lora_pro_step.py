"""LoRA-Pro: how close a step of the factors comes to full fine-tuning's, along a training run.

In each step, for each adapted layer with g = dL/dW (out, in):

    gradient   e = s (B a + b A) against g, with autograd's (gA, gB) for LoRA and the closest (a, b) for LoRA-Pro
    step       ΔW after the optimiser's step less ΔW before, against -lr Adam(g), Adam's moments of g on this very path

as ‖e - g‖ / ‖g‖ and the cosine, mean over layers. The first is bounded below by the projection on the tangent space.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from shared import Budget
from torch import Tensor
from torch.nn import functional as F

from vision_lowrank.adapters.tuner import tuner_layers
from vision_lowrank.engine.hooks import Hook
from vision_lowrank.engine.loop import Engine
from vision_lowrank.engine.progress import Display, say
from vision_lowrank.optim.lora_pro_optimizer import closest, equivalent_gradient, geometries
from vision_lowrank.optim.tensors import pairs
from vision_lowrank.optim.weights import weight_change
from vision_lowrank.studies.run import build_task

STEPS, EARLY = 40, 5


def lora_pro_step(budget: Budget) -> dict[str, Any]:
    """Measure along a run of LoRA and one of LoRA-Pro; the means leave out the first step, where B = 0."""
    steps = str(min(STEPS, budget.steps))
    found = {}
    for recipe in ("lora", "lora_pro"):
        config = budget.config(recipe, f"engine.steps={steps}", "adapter.dropout=0")
        watch = Watch()
        with tempfile.TemporaryDirectory() as scratch:
            engine = Engine(
                config.engine, build_task(config, 1), Path(scratch), seed=1, rule=config.rule, hooks=[watch]
            )
            engine.display = Display(enabled=False)
            say(f"  along {recipe}, {steps} steps")
            engine.fit()
        rows = watch.rows[1:]
        parts = {"all": rows, "early": rows[:EARLY], "late": rows[-EARLY:]}
        found[recipe] = {part: means(chosen) for part, chosen in parts.items()}
    return found


class Watch(Hook):
    """Compares in every step.

    Attributes:
        rows: of each step, quantity -> mean over layers.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_stage_start(self, engine: Engine) -> None:
        """Find the layers."""
        layers = dict(tuner_layers(engine.task))
        self.pairs = pairs(engine.task)
        self.layers = [layers[pair.name] for pair in self.pairs]
        self.moments = [(torch.zeros_like(delta), torch.zeros_like(delta)) for delta in self.changes()]

    def after_backward(self, engine: Engine) -> None:
        """Compare the gradients; the factors' gradients are what they were afterwards."""
        full = full_gradients(self.layers, engine.closure)
        beta1, beta2 = engine.settings.betas
        self.row: dict[str, list[float]] = {}
        self.wanted = []
        with torch.no_grad():
            self.before = self.changes()
            for pair, geometry, g in zip(self.pairs, geometries(self.pairs), full, strict=True):
                raw = pair.A.grad, pair.B.grad
                self.note("lora gradient", equivalent_gradient(pair, *raw), g)
                self.note("lora_pro gradient", equivalent_gradient(pair, *closest(pair, geometry, *raw)), g)
            for (first, second), g in zip(self.moments, full, strict=True):
                first.lerp_(g, 1 - beta1)
                second.mul_(beta2).addcmul_(g, g, value=1 - beta2)
                steps = engine.step + 1
                self.wanted.append(first / (1 - beta1**steps) / ((second / (1 - beta2**steps)).sqrt() + 1e-8))

    def after_step(self, engine: Engine) -> None:
        """Compare the step that was taken."""
        lr = engine.optimizer.param_groups[0]["lr"]
        for before, after, wanted in zip(self.before, self.changes(), self.wanted, strict=True):
            self.note("step", after - before, -lr * wanted)
        self.rows.append({name: fmean(values) for name, values in self.row.items()})

    def note(self, name: str, own: Tensor, other: Tensor) -> None:
        """Note the distance relative to `other`, and the cosine."""
        distance = float((own - other).norm() / other.norm())
        cosine = float((own * other).sum() / (own.norm() * other.norm()).clamp_min(1e-30))
        self.row.setdefault(f"{name}, distance", []).append(distance)
        self.row.setdefault(f"{name}, cosine", []).append(cosine)

    def changes(self) -> list[Tensor]:
        """Return ΔW (out, in) of all layers."""
        return [weight_change(layer).detach() for layer in self.layers]


def full_gradients(layers: list[BaseTunerLayer], closure: Callable[[], Any]) -> list[Tensor]:
    """Compute dL/dW (out, in) of each layer, whose W + ΔW is one matrix meanwhile.

    `closure` fills all other gradients too.
    """
    deltas: dict[BaseTunerLayer, Tensor] = {}
    for layer in layers:
        layer.forward = partial(_dense, layer, deltas)
    try:
        closure()
    finally:
        for layer in layers:
            del layer.forward
    return [deltas[layer].grad for layer in layers]


def _dense(layer: BaseTunerLayer, deltas: dict[BaseTunerLayer, Tensor], x: Tensor) -> Tensor:
    deltas[layer] = delta = weight_change(layer)
    delta.retain_grad()
    return F.linear(x, layer.base_layer.weight + delta, layer.base_layer.bias)


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Compute the mean of each quantity over the steps."""
    return {name: fmean(row[name] for row in rows) for name in rows[0]}
