"""What decays when all of a model is pretrained: matrices; not vectors, and not position embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def decay_groups(named: Iterable[tuple[str, nn.Parameter]], positions: str) -> list[dict[str, Any]]:
    """Divide parameters into those that decay with the run's weight decay and those that never do.

    Args:
        named: names and parameters.
        positions: part of a name that only position embeddings have.
    """
    decayed, others = [], []
    for name, parameter in named:
        (decayed if parameter.ndim >= 2 and positions not in name else others).append(parameter)
    return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
