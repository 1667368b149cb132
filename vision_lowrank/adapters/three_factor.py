"""The three-factor layer that LoRA-XS, SLoRA and LaMDA share: two projections and an r × r core between them.

::

    y = x Wᵀ + b + s · ((drop(x) Aᵀ) Rᵀ) Bᵀ,      ΔW = s · B R A,      A (r, in), R (r, r), B (out, r)

Each of the three is trained (a parameter) or frozen (a buffer, saved with the adapter: it cannot always be computed
again). As r is far below the number of tokens, B R is multiplied first and the layer costs what LoRA costs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .base import AdapterConfig, Factors, Start, WeightUpdate, check_rank


class Trains(NamedTuple):
    """Which of the three factors train."""

    A: bool
    core: bool
    B: bool


class ThreeFactor(WeightUpdate):
    """A (r, in), core (r, r) and B (out, r), trained or frozen."""

    no_decay = ("core",)

    A: Tensor
    core: Tensor
    B: Tensor

    def __init__(self, weight: Tensor, config: AdapterConfig, name: str, trains: Trains, r: int | None = None) -> None:
        super().__init__(config)
        out_features, in_features = weight.shape
        r = config.r if r is None else r
        check_rank(r, min(weight.shape), name, f"a linear of {in_features} to {out_features}")
        like = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        shapes = {"A": (r, in_features), "core": (r, r), "B": (out_features, r)}
        for factor, trained in trains._asdict().items():
            tensor = torch.zeros(shapes[factor], **like)
            if trained:
                self.register_parameter(factor, nn.Parameter(tensor))
            else:
                self.register_buffer(factor, tensor)
        self.shares_A = not trains.A

    def own_factors(self) -> Factors:
        """Return A (r, in), B R (out, r) and s."""
        return Factors(self.A, self.B @ self.core, self.scale)

    @torch.no_grad()
    def start_from(self, start: Start) -> None:
        """Set all three factors as they are."""
        for factor, tensor in start._asdict().items():
            getattr(self, factor).copy_(tensor)


def nystrom_blocks(weight: Tensor, r: int) -> Start:
    """Copy W[:r, :], W[:r, :r] and W[:, :r] of a weight (out, in): the Nyström start (arXiv 2502.14482)."""
    return Start(weight[:r].clone(), weight[:r, :r].clone(), weight[:, :r].clone())
