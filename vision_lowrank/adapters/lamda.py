"""LaMDA: a frozen first projection, a second one that freezes column by column, and a small core that always trains.

Paper: "LaMDA: Large Model Fine-Tuning via Spectrally Decomposed Low-Dimensional Adaptation", arXiv 2406.12832::

    ΔW = s · (B S A - B_0 S_0 A),      A (r, in) frozen,      S (r, r) trained,      B (out, r) trained at first

``start: spectral``: with W ≈ U_r Σ_r V_rᵀ, A = V_rᵀ, B_0 = U_r, S_0 = Σ_r / s. The paper subtracts s B_0 S_0 A from the
frozen W; here W stays and the product is an offset, so ΔW = 0 at the start. ``identity`` puts √Σ into A and B instead,
with S_0 = 1: the same product, conditioned differently. ``lora`` is what the public code does: A and S random, B = 0.

Freezing: of T optimiser steps, after step t the leading columns ⌊r t / (η T)⌋ of B (largest singular value first) keep
the value they had when they froze, whatever momentum and weight decay do; after η T steps B leaves the optimiser and
r² parameters per layer are left, of r² + r · out at the start. As A is frozen, the backward pass needs x for nothing:
the layer keeps r numbers per token where LoRA keeps in.

LaMDA++ (``ranks: spectrum``) gives every layer its own rank (:mod:`.linalg`).

Reconstructed: S_0 = Σ_r / s (the paper says "singular vectors" only), and the linear schedule, whose public code lacks
the factor r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import UserError, near_miss
from ..registry import register
from .base import LoraScaledConfig, WeightUpdate
from .linalg import allocate_ranks, truncated_svd
from .three_factor import ThreeFactor, Trains
from .tuner import register_method

STARTS, RANKS = ("spectral", "identity", "lora"), ("equal", "spectrum")


@register(
    "adapter",
    "lamda",
    summary="a core between a frozen projection and one that freezes while it trains (LaMDA, LaMDA++)",
    paper="arXiv 2406.12832",
)
@dataclass
class LamdaConfig(LoraScaledConfig):
    """Options of LaMDA and LaMDA++.

    Attributes:
        allocated_ranks: layer name -> rank, filled in by ``ranks: spectrum`` when the adapter is attached.

    Raises:
        UserError: an unknown `start` or `ranks`, a negative `eta`, or ranks given beside ``ranks: spectrum``.
    """

    exposed = (
        *("r", "alpha", "dropout", "scaling", "rank_pattern", "alpha_pattern"),
        *("start", "eta", "ranks", "candidates"),
    )

    r: int = field(default=16, metadata={"help": "rank; with `ranks: spectrum` the average rank", "ge": 1})
    alpha: float = field(default=16.0, metadata={"help": "numerator of the scale"})
    start: Literal["spectral", "identity", "lora"] = field(
        default="spectral", metadata={"help": "singular vectors of W, the same with a core of ones, or LoRA's"}
    )
    eta: float = field(default=0.3, metadata={"help": "share of training after which B is frozen", "ge": 0})
    ranks: Literal["equal", "spectrum"] = field(
        default="equal", metadata={"help": "the same rank everywhere, or by the spectrum of each weight (LaMDA++)"}
    )
    candidates: list[int] | None = field(
        default=None, metadata={"help": "ranks that `spectrum` may give; r/2, r and 2r if not given"}
    )
    allocated_ranks: dict[str, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("start", STARTS), ("ranks", RANKS)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"unknown {name} '{value}'.{near_miss(value, known)} Known: {', '.join(known)}.")
        if not self.eta >= 0:
            raise UserError(f"eta = {self.eta}: it is a share of training, 0 or more.")
        if self.ranks == "spectrum" and self.rank_pattern:
            raise UserError("ranks = spectrum gives every layer its rank: leave rank_pattern out, or set ranks: equal.")

    def begin_phase(self, updates: Mapping[str, WeightUpdate], phase: str) -> None:
        """Train B anew in every stage of a run, which freezes it by its own length."""
        for update in updates.values():
            update.thaw()

    def prepare(self, weights: Mapping[str, Tensor]) -> None:
        """Give every layer its rank, unless a saved config has them already."""
        if self.ranks == "spectrum" and self.allocated_ranks is None:
            candidates = self.candidates or [max(self.r // 2, 1), self.r, 2 * self.r]
            self.allocated_ranks = allocate_ranks(weights, self.r, candidates)


class Lamda(ThreeFactor):
    """Frozen A, trained core, B that freezes from the first column to the last."""

    kept: Tensor

    def __init__(self, weight: Tensor, config: LamdaConfig, name: str) -> None:
        r = (config.allocated_ranks or {}).get(name, config.r)
        super().__init__(weight, config, name, Trains(A=False, core=True, B=True), r)
        self.eta, self.frozen = config.eta, 0
        self.register_buffer("kept", torch.zeros_like(self.B, device=weight.device), persistent=False)
        with torch.no_grad():
            if config.start == "lora":
                nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
                nn.init.kaiming_uniform_(self.core, a=math.sqrt(5))
                return
            U, sigma, Vt = truncated_svd(weight, r)
            root = (sigma / self.scale).sqrt() if config.start == "identity" else torch.ones_like(sigma)
            self.A.copy_(root[:, None] * Vt)
            self.B.copy_(U * root)
            self.core.copy_(torch.diag(sigma / self.scale / root.square()))
        self.hold_output()

    def thaw(self) -> None:
        """Train all columns of B again."""
        self.frozen = 0
        self.B.requires_grad_(True)

    @torch.no_grad()
    def set_progress(self, optimizer: Optimizer, step: int, steps: int) -> None:
        """Hold the frozen columns of B at their values and freeze those that are due after `step` of `steps`."""
        if not self.core.requires_grad:
            return  # another adapter is being trained
        r = self.B.shape[1]
        due = min(r, math.floor(r * step / (self.eta * steps))) if self.eta * steps > 0 else r
        self.B[:, : self.frozen] = self.kept[:, : self.frozen]
        self.kept[:, self.frozen : due] = self.B[:, self.frozen : due]
        self.frozen = max(self.frozen, due)
        if self.frozen == r and self.B.requires_grad:
            self.B.requires_grad_(False).grad = None
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if p is not self.B]
            optimizer.state.pop(self.B, None)

    def facts(self) -> dict[str, float]:
        """Return the rank, and how many parameters train at first and at the end."""
        r = self.A.shape[0]
        return {"rank": r, "trained_at_first": r * r + self.B.numel(), "trained_at_the_end": r * r}


register_method("lamda", LamdaConfig, Lamda)
