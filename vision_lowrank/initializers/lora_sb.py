"""LoRA-SB: start at the best low-rank approximation of full fine-tuning's first step.

Paper: "Initialization using Update Approximation is a Silver Bullet for Extremely Efficient Low-Rank Fine-Tuning",
arXiv 2411.19557. AdamW's first step on W (out, in) with the learning rate η_1 is, from the gradient G of the loss,

    D = -η_1 · sign(G) ≈ U_r S_r V_rᵀ        A = V_rᵀ,      B = U_r,      core = diag(S_r) / s

so that s · B core A is the best rank-r approximation of D. On LoRA-XS, where A and B are frozen and orthonormal, every
later gradient step is the projection of full fine-tuning's. The model starts one such step away from the base, by
design; ``residual: true`` takes that away by an offset (an ablation: it removes the method's first step).

η_1 is the learning rate of the first warm-up step. Where a run has no warm-up, a hundredth of its rate is taken: the
full rate would move the start by η √(in · out).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from ..adapters.base import Start, check_rank
from ..adapters.linalg import truncated_svd
from ..errors import UserError
from ..registry import register
from .base import GradientInitializer, Site


@register(
    "initializer",
    "lora_sb",
    summary="best low-rank form of full fine-tuning's first step; with lora_xs it is LoRA-SB",
    paper="arXiv 2411.19557",
)
class LoraSb(GradientInitializer):
    """Options of LoRA-SB."""

    type: Literal["lora_sb"] = "lora_sb"
    lr: float | None = Field(
        None, gt=0, description="learning rate of the approximated step; null = the run's first warm-up step"
    )
    residual: bool = Field(False, description="start at the base's output, by an offset (an ablation)")

    def start(self, site: Site) -> Start:
        """Compute factors from the signs of one layer's gradient.

        Raises:
            UserError: r exceeds the weight's sides, the gradient is zero, or no learning rate is known.
        """
        if self.lr is None:
            raise UserError("lora_sb needs the learning rate of the first step: give lr.")
        check_rank(site.r, min(site.weight.shape), site.name, f"whose sides are {tuple(site.weight.shape)}")
        U, sigma, Vt = truncated_svd(-self.lr * self.gradient_of(site).sign(), site.r)
        return Start(Vt, torch.diag(sigma) / site.scale, U)

    def for_training(self, lr: float, warmup_steps: int) -> LoraSb:
        """Fill in the learning rate of a run's first step, unless one was given."""
        return self if self.lr else self.model_copy(update={"lr": lr / (warmup_steps + 1 if warmup_steps else 100)})
