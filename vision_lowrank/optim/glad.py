"""GLAD: LoRA's gradient steered by the gradient at the worst point nearby.

Paper: "GLAD: Generalizable Tuning for Vision-Language Models", arXiv 2507.13089. For all adapter tensors θ as one
vector, the mini-batch loss L, ρ > 0 and λ in [0, 1]::

    g = ∇L(θ),    ε = ρ g / (‖g‖ + 1e-12),    u = ∇L(θ + ε) / ‖∇L(θ + ε)‖      on the same batch, same dropout
    steer:    g' = g + λ (∇L(θ + ε) - g)
    project:  g' = g - λ ⟨g, u⟩ u where ⟨g, u⟩ < 0, else g
    align:    g' = ⟨g, u⟩ u + (1 - λ) (g - ⟨g, u⟩ u)

and the optimiser steps at θ with g'. ``steer`` with λ = 1 is SAM; to first order in ρ it follows the gradient of
L + λ ρ ‖∇L‖. λ = 0 is plain training under every rule. A head that is no adapter takes part only with
``perturb_head``. Costs a second forward and backward pass; nothing at inference.

Reconstructed: the paper's equation for combining the two gradients and its ρ and λ are not public; the three rules and
the defaults are this project's.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..registry import register
from .base import Closure, Rule, Stage, Steps, norm
from .tensors import adapter_tensors


@register("rule", "glad", summary="gradients steered towards flat regions (GLAD; SAM)", paper="arXiv 2507.13089")
class Glad(Rule):
    """Options of GLAD."""

    type: Literal["glad"] = "glad"
    combine: Literal["steer", "project", "align"] = Field("steer", description="how the two gradients are combined")
    rho: float = Field(0.05, ge=0, description="distance of the perturbed point")
    strength: float = Field(0.5, ge=0, le=1, description="λ: 0 is plain training, 1 with `steer` is SAM")
    per_tensor: bool = Field(False, description="`project`: decide per tensor instead of once")
    perturb_head: bool = Field(False, description="perturb a trained head too, not adapters alone")

    def start(self, stage: Stage) -> GladSteps:
        """Two passes per step."""
        return GladSteps(self, stage)


class GladSteps(Steps):
    """The two passes of each step."""

    def __init__(self, options: Glad, stage: Stage) -> None:
        super().__init__(stage)
        self.options = options

    def gradients(self, closure: Closure) -> dict[str, float]:
        """g' in ``.grad`` of the perturbed tensors; the losses are those at θ."""
        options = self.options
        losses = closure()
        tensors = self._tensors()
        own = [tensor.grad.clone() for tensor in tensors]
        size = norm(own)
        if not size.isfinite():
            return losses  # the engine skips the step
        here = [tensor.detach().clone() for tensor in tensors]
        others = [p for p in self.stage.model.parameters() if p.grad is not None and not _among(p, tensors)]
        kept = [p.grad.clone() for p in others]
        try:
            with torch.no_grad():
                for tensor, g in zip(tensors, own, strict=True):
                    tensor.add_(g, alpha=options.rho / (float(size) + 1e-12))
            closure()
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, here, strict=True):
                    tensor.copy_(value)
        nearby = [tensor.grad for tensor in tensors]
        for tensor, g in zip(tensors, self._combine(own, nearby), strict=True):
            tensor.grad = g
        for parameter, g in zip(others, kept, strict=True):
            parameter.grad = g
        return losses | {"glad_cosine": float(_dot(own, nearby) / (size * norm(nearby) + 1e-12))}

    def _tensors(self) -> list[Tensor]:
        model = self.stage.model
        tensors = list(model.parameters()) if self.options.perturb_head else adapter_tensors(model)
        return [tensor for tensor in tensors if tensor.grad is not None]

    def _combine(self, own: list[Tensor], nearby: list[Tensor]) -> list[Tensor]:
        """g' from g and the gradient nearby."""
        strength = self.options.strength
        if self.options.combine == "steer":
            return [g + strength * (n - g) for g, n in zip(own, nearby, strict=True)]
        if self.options.combine == "align":
            along = _dot(own, nearby) / _dot(nearby, nearby).clamp_min(1e-24)
            return [along * n + (1 - strength) * (g - along * n) for g, n in zip(own, nearby, strict=True)]
        groups = [([g], [n]) for g, n in zip(own, nearby, strict=True)]
        if not self.options.per_tensor:
            groups = [(own, nearby)]
        combined = []
        for gs, ns in groups:
            along = (_dot(gs, ns) / _dot(ns, ns).clamp_min(1e-24)).clamp_max(0)
            combined += [g - strength * along * n for g, n in zip(gs, ns, strict=True)]
        return combined


def _dot(one: list[Tensor], other: list[Tensor]) -> Tensor:
    return sum((a * b).sum() for a, b in zip(one, other, strict=True))


def _among(parameter: Tensor, tensors: list[Tensor]) -> bool:
    return any(parameter is tensor for tensor in tensors)
