r"""Learning rate of every optimiser step: linear warm-up, then a cosine that ends exactly at its minimum.

With S steps, w warm-up steps, peak p and minimum m, iteration k = 0 .. S-1 uses

    k <  w:  p (k + 1) / (w + 1)
    k >= w:  m + (p - m) (1 + cos(pi t)) / 2,   t = (k - w) / (S - 1 - w)

so without warm-up iteration 0 uses p and iteration S-1 uses m (CLIP-LoRA, arXiv 2405.18541), and the warm-up wastes
no step on a learning rate of zero. ``constant`` replaces the cosine by p.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer

from ..config.schema import EngineConfig


def learning_rate(step: int, peak: float, config: EngineConfig) -> float:
    """Compute the learning rate of iteration `step` (0-based) for a parameter group whose peak is `peak`.

    A group whose peak lies below ``config.min_lr`` stays at its peak.
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return peak
    minimum = min(config.min_lr, peak)
    decay_steps = config.steps - 1 - config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / decay_steps) if decay_steps > 0 else 0.0
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(optimizer: Optimizer, step: int, config: EngineConfig) -> float:
    """Give every group its rate for iteration `step` and return the first group's; peaks are ``initial_lr``."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, group.setdefault("initial_lr", group["lr"]), config)
    return optimizer.param_groups[0]["lr"]
