"""LoRA-XS: only an r × r matrix trains, between two frozen factors from the SVD of W.

Paper: "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters", arXiv 2405.17604. With the truncated
SVD W ≈ U_r Σ_r V_rᵀ::

    ΔW = s · B R A,      A = Σ_r V_rᵀ (r, in),      B = U_r (out, r),      R (r, r) ~ N(0, (1e-5)²),      s = alpha / r

A and B are frozen, r² parameters train per layer. R starts close to zero, not at zero, so the output at the start is
the base's only to about 1e-5. R needs a learning rate of 1e-3 to 5e-3, ten times LoRA's or more. ``factors: random``
draws A and B Kaiming-uniform (the paper's ablation).

With the initialiser ``lora_sb`` this layer is LoRA-SB (arXiv 2411.19557).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import UserError, near_miss
from ..registry import register
from .base import LoraScaledConfig
from .linalg import truncated_svd
from .three_factor import ThreeFactor, Trains
from .tuner import register_method

CORE_STD = 1e-5
FACTORS = ("svd", "random")


@register(
    "adapter",
    "lora_xs",
    summary="an r x r core between frozen singular vectors: r² parameters per linear",
    paper="arXiv 2405.17604",
)
@dataclass
class LoraXsConfig(LoraScaledConfig):
    """Options of LoRA-XS.

    Raises:
        UserError: unknown `factors`.
    """

    r: int = field(default=16, metadata={"help": "rank; r² parameters train per linear", "ge": 1})
    alpha: float = field(default=16.0, metadata={"help": "numerator of the scale"})
    factors: Literal["svd", "random"] = field(
        default="svd", metadata={"help": "frozen factors: of the SVD of W, or Kaiming-uniform"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factors not in FACTORS:
            raise UserError(f"unknown factors '{self.factors}'.{near_miss(self.factors, FACTORS)} Known: svd, random.")


class LoraXs(ThreeFactor):
    """Frozen A and B, trained core."""

    def __init__(self, weight: Tensor, config: LoraXsConfig, name: str) -> None:
        super().__init__(weight, config, name, Trains(A=False, core=True, B=False))
        if config.factors == "svd":
            U, sigma, Vt = truncated_svd(weight, config.r)
            self.A.copy_(sigma[:, None] * Vt)
            self.B.copy_(U)
        else:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
            nn.init.kaiming_uniform_(self.B, a=math.sqrt(5))
        with torch.no_grad():
            self.core.normal_(std=CORE_STD)


register_method("lora_xs", LoraXsConfig, LoraXs)
