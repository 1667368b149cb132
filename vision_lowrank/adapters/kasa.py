"""KaSA: drop the smallest singular components of W and learn an update in the form of an SVD.

Paper: "KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models", arXiv 2412.06071. With
W = U S Vᵀ (out, in), k = min(out, in), and the r smallest singular triplets U_t (out, r), S_t (r,), V_t (in, r)::

    ΔW = s · B diag(σ) A - U_t S_t V_tᵀ,      A (r, in), σ (r,), B (out, r) trained,      s = alpha / r

A starts Kaiming-uniform, B at zero, σ ~ N(0, 1). The model thus starts as the *truncated* base W - U_t S_t V_tᵀ of rank
k - r, not as the base: a drop before training is the method's, and it grows with r. r (in + out) + r parameters train.

Each layer adds the penalty (the paper's Eqs. 9 to 12)::

    beta · ‖σ‖² + gamma · (‖BᵀB - I‖_F + ‖A Aᵀ - I‖_F)

``reduce: mean`` divides it by the number of adapted layers, as the reference code does, so that published beta and
gamma apply; ``sum``, PEFT's choice, is that many times stronger.

Why not PEFT's KaSA: it overwrites W with the truncated weight, so that no adapter can be disabled or exported, and its
training loop must remember the penalty. Here W is untouched and the removed part is an offset beside it: disabling
gives the base bit for bit, the export is an exact plain LoRA of rank 2r, and the engine collects the penalty. The Gram
matrices are PEFT's (r, r); the reference code takes (in, in) and (out, out) ones, whose penalty cannot reach zero. The
truncation is PEFT's too: r of the k components, whereas the reference truncates nothing where in - r ≥ out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import UserError, near_miss
from ..registry import register
from .base import Factors, LoraScaledConfig, WeightUpdate, check_rank
from .linalg import truncated_svd
from .tuner import register_method

REDUCE = ("mean", "sum")


@register(
    "adapter",
    "kasa",
    summary="drops the smallest singular components of W and learns new ones (KaSA)",
    paper="arXiv 2412.06071",
)
@dataclass
class KasaConfig(LoraScaledConfig):
    """Options of KaSA.

    Attributes:
        adapted_layers: number of adapted layers, counted when the adapter is attached.

    Raises:
        UserError: an unknown `reduce`, a negative `beta` or `gamma`, or `alpha` = 0.
    """

    exposed = ("r", "alpha", "dropout", "scaling", "rank_pattern", "alpha_pattern", "beta", "gamma", "reduce")

    r: int = field(default=8, metadata={"help": "rank, and number of singular components removed", "ge": 1})
    alpha: float = field(default=16.0, metadata={"help": "numerator of the scale"})
    beta: float = field(default=1e-4, metadata={"help": "weight of the size penalty on the singular values", "ge": 0})
    gamma: float = field(default=1e-3, metadata={"help": "weight of the orthogonality penalty", "ge": 0})
    reduce: Literal["mean", "sum"] = field(
        default="mean", metadata={"help": "penalty over layers: `mean` (reference code) or `sum` (PEFT)"}
    )
    adapted_layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduce not in REDUCE:
            raise UserError(
                f"unknown reduce '{self.reduce}'.{near_miss(self.reduce, REDUCE)} Known: {', '.join(REDUCE)}."
            )
        for name in ("beta", "gamma"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} = {getattr(self, name)}: it weighs a penalty, 0 or more.")
        if self.alpha == 0:
            raise UserError("alpha = 0: KaSA carries the removed part of W under its scale; give another value.")

    def prepare(self, weights: Mapping[str, Tensor]) -> None:
        """Count the layers for ``reduce: mean``."""
        self.adapted_layers = len(weights)


class Kasa(WeightUpdate):
    """A (r, in), sigma (r,) and B (out, r) trained; the removed part of W as the offset."""

    no_decay = ("sigma",)  # it has a size penalty of its own

    offset_A: Tensor
    offset_B: Tensor

    def __init__(self, weight: Tensor, config: KasaConfig, name: str) -> None:
        super().__init__(config)
        out_features, in_features = weight.shape
        why = f"a linear of {in_features} to {out_features} that must keep one singular component"
        check_rank(config.r, min(weight.shape) - 1, name, why)
        U, singular, Vt = truncated_svd(weight, min(weight.shape))
        like = {"device": weight.device, "dtype": singular.dtype}
        self.A = nn.Parameter(torch.empty(config.r, in_features, **like))
        self.sigma = nn.Parameter(torch.randn(config.r, **like))
        self.B = nn.Parameter(torch.zeros(out_features, config.r, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        tail = singular[-config.r :]
        self.offset_A = Vt[-config.r :].clone()
        self.offset_B = -U[:, -config.r :] * tail / self.scale
        total = singular.square().sum()
        self.removed = float(tail.square().sum() / total) if total > 0 else 0.0
        layers = config.adapted_layers if config.reduce == "mean" else 1
        self.beta, self.gamma = config.beta / layers, config.gamma / layers

    def own_factors(self) -> Factors:
        """Return A (r, in), B diag(σ) (out, r), s."""
        return Factors(self.A, self.B * self.sigma, self.scale)

    def extra_losses(self) -> dict[str, Tensor]:
        """Compute both penalties as scalars, weights included; none while the adapter is frozen."""
        if not self.B.requires_grad:
            return {}
        identity = torch.eye(len(self.A), device=self.A.device, dtype=self.A.dtype)
        apart = torch.linalg.norm(self.B.T @ self.B - identity) + torch.linalg.norm(self.A @ self.A.T - identity)
        return {"kasa_size": self.beta * self.sigma.square().sum(), "kasa_orthogonality": self.gamma * apart}

    def facts(self) -> dict[str, float]:
        """Return the rank, and the share of ‖W‖² that was removed."""
        return {"rank": len(self.A), "removed_energy": self.removed}


class DroppingKasa(Kasa):
    """KaSA with dropout, which spares the removed part: that belongs to the frozen weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the adapter adds: (..., in) -> (..., out)."""
        A, B, scale = self.own_factors()
        own = nn.functional.linear(nn.functional.linear(self.dropout(x), A), B)
        return scale * (own + nn.functional.linear(nn.functional.linear(x, self.offset_A), self.offset_B))


def make_kasa(weight: Tensor, config: KasaConfig, name: str) -> Kasa:
    """Build the update of one linear; without dropout its forward is every method's, which runs on the fused kernel."""
    return (DroppingKasa if config.dropout else Kasa)(weight, config, name)


register_method("kasa", KasaConfig, make_kasa)
