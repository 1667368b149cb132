"""GLAD: LoRA's gradient steered by the gradient at the worst point nearby.

Paper: "GLAD: Generalizable Tuning for Vision-Language Models", arXiv 2507.13089. For all adapter tensors θ as one
vector, the mini-batch loss L, ρ > 0 and λ in [0, 1]::

    g = ∇L(θ),    ε = ρ g / (‖g‖ + 1e-12),    u = ∇L(θ + ε) / ‖∇L(θ + ε)‖      on the same batch, same dropout
    steer:    g' = g + λ (∇L(θ + ε) - g)
    project:  g' = g - λ ⟨g, u⟩ u where ⟨g, u⟩ < 0, else g
    align:    g' = ⟨g, u⟩ u + (1 - λ) (g - ⟨g, u⟩ u)

and the optimiser steps at θ with g'. ``steer`` with λ = 1 is SAM; to first order in ρ it follows the gradient of
L + λ ρ ‖∇L‖. λ = 0 is plain training under every rule. A head that is no adapter takes part only with
``perturb_head``. Costs a second forward and backward pass; nothing at inference. With ``refresh_every: n`` the gradient
nearby is computed at every n-th step and kept for the steps between, which cost one pass: an approximation for where
passes are dear, such as a text tower over a thousand prompts.

Reconstructed: the paper's equation for combining the two gradients and its ρ and λ are not public; the three rules and
the defaults are this project's.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..registry import register
from .base import Closure, Rule, StepContext, Steps, norm
from .tensors import adapter_tensors
from .weights import restored


@register("rule", "glad", summary="gradients steered towards flat regions (GLAD; SAM)", paper="arXiv 2507.13089")
class Glad(Rule):
    """Options of GLAD."""

    type: Literal["glad"] = "glad"
    combine: Literal["steer", "project", "align"] = Field("steer", description="how the two gradients are combined")
    rho: float = Field(0.05, ge=0, description="distance of the perturbed point")
    strength: float = Field(0.5, ge=0, le=1, description="λ: 0 is plain training, 1 with `steer` is SAM")
    per_tensor: bool = Field(False, description="`project`: decide per tensor instead of once")
    perturb_head: bool = Field(False, description="perturb a trained head too, not adapters alone")
    refresh_every: int = Field(1, ge=1, description="steps that one gradient nearby serves; 1 computes it at each step")

    def start(self, stage: StepContext) -> GladSteps:
        """Start two passes per step, or per ``refresh_every`` steps."""
        return GladSteps(self, stage)


class GladSteps(Steps):
    """The passes of each step.

    Attributes:
        kept: the last gradient nearby, by parameter name; empty where each step computes its own.
        served: how many steps it has served.
    """

    def __init__(self, options: Glad, stage: StepContext) -> None:
        super().__init__(stage)
        self.options = options
        self.kept: dict[str, Tensor] = {}
        self.served = 0

    def prepare(self) -> None:
        """Check that there is something to perturb."""
        if not self.options.perturb_head:
            adapter_tensors(self.stage.model)

    def gradients(self, closure: Closure) -> dict[str, float]:
        """Leave g' in ``.grad`` of the perturbed tensors, ∇L(θ) in that of others; the losses are those at θ."""
        losses = closure()
        own = {parameter: parameter.grad for parameter in self.stage.model.parameters()}
        tensors = self._perturbed()
        g = [own[tensor] for tensor in tensors]
        size = norm(g)
        if not g or not size.isfinite():
            return losses  # the engine skips a step that is not finite
        nearby = self._nearby(closure, tensors, g, size)
        for parameter, gradient in (own | dict(zip(tensors, self._combine(g, nearby), strict=True))).items():
            parameter.grad = gradient
        return losses | {"glad_cosine": float(_dot(g, nearby) / (size * norm(nearby) + 1e-12))}

    def state_dict(self) -> dict[str, Any]:
        """Return the gradient that is kept, and how many steps it has served."""
        return {"kept": self.kept, "served": self.served}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with them."""
        self.kept, self.served = dict(state["kept"]), state["served"]

    def _nearby(self, closure: Closure, tensors: list[Tensor], g: list[Tensor], size: Tensor) -> list[Tensor]:
        """Return ∇L(θ + ε) of `tensors`, or the one kept from an earlier step; ``.grad`` is spoilt."""
        names = {parameter: name for name, parameter in self.stage.model.named_parameters()}
        if not self.kept or self.served >= self.options.refresh_every:
            nearby = self._second_pass(closure, tensors, g, size)
            # One that is not finite costs this step; kept, it would cost the following ones too.
            keep = self.options.refresh_every > 1 and bool(norm(nearby).isfinite())
            self.kept = {names[tensor]: n.clone() for tensor, n in zip(tensors, nearby, strict=True)} if keep else {}
            self.served = 1
            return nearby
        self.served += 1
        # A tensor that had no gradient then follows its own.
        return [self.kept.get(names[tensor], own).to(own) for tensor, own in zip(tensors, g, strict=True)]

    def _second_pass(self, closure: Closure, tensors: list[Tensor], g: list[Tensor], size: Tensor) -> list[Tensor]:
        """Compute ∇L(θ + ε), zeros where the loss there does not use a tensor."""
        for parameter in self.stage.model.parameters():
            parameter.grad = None  # whatever the closure does to gradients, it must not write into those of θ
        norms = [module for module in self.stage.model.modules() if isinstance(module, _BatchNorm)]
        with restored([*tensors, *chain(*(module.buffers() for module in norms))]), torch.no_grad():
            for tensor, direction in zip(tensors, g, strict=True):
                tensor.add_(direction, alpha=self.options.rho / (float(size) + 1e-12))
            with torch.enable_grad():
                closure()
        return [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tensors]

    def _perturbed(self) -> list[Tensor]:
        """Collect the tensors of θ that have a gradient."""
        model = self.stage.model
        tensors = list(model.parameters()) if self.options.perturb_head else adapter_tensors(model)
        return [tensor for tensor in tensors if tensor.grad is not None]

    def _combine(self, own: list[Tensor], nearby: list[Tensor]) -> list[Tensor]:
        """Combine g and the gradient nearby to g': g - λ · (what the rule takes away)."""
        pairs = list(zip(own, nearby, strict=True))
        if self.options.combine == "steer":
            away = [g - n for g, n in pairs]
        elif self.options.combine == "align":
            along = _along(own, nearby)
            away = [g - along * n for g, n in pairs]
        elif self.options.per_tensor:
            away = [_along([g], [n]).clamp_max(0) * n for g, n in pairs]
        else:
            along = _along(own, nearby).clamp_max(0)
            away = [along * n for n in nearby]
        return [g - self.options.strength * each for g, each in zip(own, away, strict=True)]


def _along(own: list[Tensor], nearby: list[Tensor]) -> Tensor:
    """Compute ⟨g, n⟩ / ⟨n, n⟩: times n it is the part of g along n."""
    return _dot(own, nearby) / _dot(nearby, nearby).clamp_min(1e-24)


def _dot(one: list[Tensor], other: list[Tensor]) -> Tensor:
    return sum((a * b).sum() for a, b in zip(one, other, strict=True))
