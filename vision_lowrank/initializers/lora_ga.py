"""LoRA-GA: start where the first step of LoRA follows the first step of full fine-tuning.

Paper: "LoRA-GA: Low-Rank Adaptation with Gradient Approximation", arXiv 2407.05000, Algorithm 1. With the mean gradient
G = U S Vᵀ of the loss with respect to W (out, in) and the method's scale η = alpha / √r::

    c = out^(1/4) / √γ,      A = c · V[:, I]ᵀ,      B = c · U[:, J],      I, J ⊂ {1 .. 2r} disjoint, r each

One SGD step changes the weight by -lr η² (G AᵀA + B BᵀG), which with these factors is a multiple of the best rank-2r
approximation of G. The singular values of G are not used, so the size of the loss does not matter. The paper subtracts
η B A from W; here it is carried as an offset: the output is unchanged and W is not touched.

``direction`` says which triplets go where: ``ArB2r`` (the paper's) I = 1..r and J = r+1..2r, ``A2rBr`` the reverse,
``ArBr`` I = 2, 4, … and J = 1, 3, …, ``random`` a random split. ``size``: ``stable`` is the c above, ``unit`` c = 1,
``gd`` c = 1 / η, ``weight`` the mean of √(σ_i(W) / η) over i ≤ r. ``norm_clip`` shrinks A and B where η B A has a
larger entry than W. ``variant: peft`` is what PEFT 0.21 computes instead, for comparison only: A of unit rows and
B = U S out^(1/4) / √γ, which depends on the size of the loss.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..adapters.base import Start, check_rank
from ..adapters.linalg import truncated_svd
from ..registry import register
from .base import GradientInitializer, Site


@register(
    "initializer",
    "lora_ga",
    summary="singular vectors of the loss gradient: the first step follows full fine-tuning",
    paper="arXiv 2407.05000",
)
class LoraGa(GradientInitializer):
    """Options of LoRA-GA."""

    type: Literal["lora_ga"] = "lora_ga"
    gamma: float = Field(64.0, gt=0, description="γ: the larger, the smaller the start")
    direction: Literal["ArB2r", "A2rBr", "ArBr", "random"] = Field("ArB2r", description="which triplets A and B take")
    size: Literal["stable", "unit", "gd", "weight"] = Field("stable", description="the factor c")
    norm_clip: bool = Field(False, description="shrink a start with entries larger than the weight's")
    variant: Literal["paper", "peft"] = Field("paper", description="the paper's formula, or PEFT's for comparison")

    def start(self, site: Site) -> Start:
        """Compute factors from the gradient of one layer.

        Raises:
            UserError: 2r exceeds the weight's sides, or the gradient is zero.
        """
        gradient, r = self.gradient_of(site), site.r
        largest = min(site.weight.shape) // 2
        check_rank(r, largest, site.name, f"where LoRA-GA needs 2r of {min(site.weight.shape)} directions")
        U, sigma, Vt = truncated_svd(gradient, 2 * r)
        rows, columns = self._split(r)
        A, B = Vt[rows], U[:, columns]
        if self.variant == "peft":
            return Start(A, torch.eye(r).to(A), B * sigma[columns] * self._factor(site))
        A, B = A * self._factor(site), B * self._factor(site)
        if self.norm_clip:
            ratio = site.weight.abs().max() / (site.scale * (B @ A)).abs().max()
            A, B = A * ratio.clamp(max=1).sqrt(), B * ratio.clamp(max=1).sqrt()
        return Start(A, torch.eye(r).to(A), B)

    def _split(self, r: int) -> tuple[Tensor, Tensor]:
        """Split the indices of the first 2r triplets into those for A and those for B."""
        order = torch.arange(2 * r)
        if self.direction == "random":
            order = torch.randperm(2 * r, generator=torch.Generator().manual_seed(self.seed))
        if self.direction == "ArBr":
            return order[1::2], order[0::2]
        first, second = order[:r], order[r:]
        return (second, first) if self.direction == "A2rBr" else (first, second)

    def _factor(self, site: Site) -> float:
        if self.size == "unit":
            return 1.0
        if self.size == "gd":
            return 1.0 / site.scale
        if self.size == "weight":
            return float((truncated_svd(site.weight, site.r)[1] / site.scale).sqrt().mean())
        return site.weight.shape[0] ** 0.25 / self.gamma**0.5
