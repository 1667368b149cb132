"""MGPO: gradients at adapter weights perturbed along the optimiser's first moment, without a second pass.

Paper: "LoRA-MGPO: Mitigating Double Descent in LoRA Fine-Tuning via Momentum-Guided Perturbation Optimization", arXiv
2502.14538 (second version). For all adapter tensors theta as one vector, with the first moment m of the optimiser
(Adam's ``exp_avg``, SGD's momentum), ``gbar`` a running mean of the gradient's norm and b = ``decay``::

    eps = rho · m / ‖m‖ · min(max_scale, 1 / gbar)           0 before the first step, when there is no m
    g = dL(theta + eps),    gbar <- b gbar + (1 - b) ‖g‖,    gbar = ‖g‖ at the first step

and the optimiser steps theta with g: SAM's ascent for the price of one pass. Heads take no part. ``max_scale`` is this
project's: gbar falls towards zero in convergence and eps would explode. Gradients are those before clipping.

``variant: code`` is what the authors' repository runs instead, for comparison. For each layer's W0 + s B A::

    D = s (mB A + B mA),    eps = -rho · D / ‖D‖ · min(max_scale, 1 / gbar_layer)   added to the frozen W0 (out, in)

with gbar_layer the running mean of ‖s (gB A + B gA)‖: descent instead of ascent, per layer, in weight space. Its mean
is taken once per optimiser step here; the repository takes it at each micro-batch, which makes gbar depend on
``accumulate``. W0 is put back from a copy, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from ..config.schema import RunConfig
from ..errors import UserError
from ..registry import register
from .base import Closure, Groups, Rule, StepContext, Steps, norm
from .tensors import Pair, adapter_tensors, pairs, require_adapter
from .weights import matrix, product_gradient, restored, row_norms


@register("rule", "mgpo", summary="gradients at weights moved along the momentum (LoRA-MGPO)", paper="arXiv 2502.14538")
class Mgpo(Rule):
    """Options of MGPO."""

    type: Literal["mgpo"] = "mgpo"
    rho: float = Field(0.05, ge=0, allow_inf_nan=False, description="size of the perturbation; 0 is plain training")
    decay: float = Field(0.9, ge=0, lt=1, description="b of the running mean of the gradient's norm")
    max_scale: float = Field(10.0, gt=0, allow_inf_nan=False, description="largest 1 / gbar")
    variant: Literal["paper", "code"] = Field("paper", description="`code`: what the authors' repository runs")

    @property
    def moves_base(self) -> bool:
        """The repository's rule perturbs frozen weights, the paper's adapters alone."""
        return self.variant == "code"

    def check(self, config: RunConfig) -> None:
        """Refuse runs without adapter and an optimiser without first moment."""
        require_adapter("mgpo", config)
        if config.engine.optimizer == "sgd" and not config.engine.momentum:
            raise UserError("rule mgpo: it follows the momentum, and this SGD has none: set engine.momentum, or adamw.")

    def start(self, stage: StepContext) -> MgpoSteps:
        """Start perturbing around each step's gradients."""
        return MgpoSteps(self, stage) if self.variant == "paper" else MgpoCodeSteps(self, stage)


class MgpoSteps(Steps):
    """The paper's rule.

    Attributes:
        gbar: running mean of the gradient's norm, a tensor; None before the first finite gradient.
    """

    def __init__(self, options: Mgpo, stage: StepContext) -> None:
        super().__init__(stage)
        self.options = options
        self.gbar: Tensor | None = None

    def prepare(self) -> None:
        """Make sure that there is something to perturb.

        Raises:
            UserError: no adapter trains.
        """
        adapter_tensors(self.stage.model)

    def optimizer(self, groups: Groups) -> Optimizer:
        """Build the usual optimiser, whose first moment is followed."""
        self.followed = super().optimizer(groups)
        return self.followed

    def gradients(self, closure: Closure) -> dict[str, float]:
        """Compute the gradients at theta + eps."""
        tensors = adapter_tensors(self.stage.model)
        with restored(tensors):
            size = self._perturb(tensors)
            losses = closure()
        self._average(norm([tensor.grad for tensor in tensors if tensor.grad is not None]))
        return losses | {"mgpo_eps": float(size)}

    def state_dict(self) -> dict[str, Any]:
        """Return gbar."""
        return {"gbar": self.gbar}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        self.gbar = state["gbar"]

    def moment(self, tensor: Tensor) -> Tensor:
        """Return the optimiser's first moment of `tensor`; zeros where it has none."""
        state = self.followed.state.get(tensor, {})
        found = state.get("exp_avg", state.get("momentum_buffer"))
        return torch.zeros_like(tensor) if found is None else found

    @torch.no_grad()
    def _perturb(self, tensors: list[Tensor]) -> Tensor:
        """Set theta + eps in place; returns ‖eps‖."""
        moments = [self.moment(tensor) for tensor in tensors]
        length = norm(moments)
        size = self._size(length)
        for tensor, moment in zip(tensors, moments, strict=True):
            tensor.add_(moment * (size / length.clamp_min(torch.finfo(length.dtype).tiny)))
        return size

    def _size(self, length: Tensor) -> Tensor:
        """Compute ‖eps‖ for moments of norm `length`: 0 where these are zero, or no gradient was finite yet."""
        if self.gbar is None:
            return torch.zeros_like(length)
        scale = (1 / self.gbar.to(length)).clamp_max(self.options.max_scale)
        return torch.where(length > 0, self.options.rho * scale, 0.0)

    def _average(self, size: Tensor) -> None:
        """Update gbar, one gradient's or each layer's, after gradients of norm `size`; kept where one is not finite."""
        if size.isfinite().all():
            old = size if self.gbar is None else self.gbar.to(size)
            self.gbar = self.options.decay * old + (1 - self.options.decay) * size


class MgpoCodeSteps(MgpoSteps):
    """The repository's rule; ``gbar`` holds one number per layer."""

    pairs: list[Pair]

    def prepare(self) -> None:
        """Find the pairs.

        Raises:
            UserError: there are none, or a layer does not train one pair B A alone.
        """
        self.pairs = pairs(self.stage.model)

    def gradients(self, closure: Closure) -> dict[str, float]:
        """Compute the gradients at W0 + eps."""
        with restored([pair.base.weight for pair in self.pairs]):
            size = self._perturb_weights()
            losses = closure()
        gradients = [product_gradient(pair, pair.A.grad, pair.B.grad) for pair in self.pairs]
        self._average(torch.stack([row_norms(L, R).norm() for L, R in gradients]))
        return losses | {"mgpo_eps": float(size)}

    @torch.no_grad()
    def _perturb_weights(self) -> Tensor:
        """Set W0 + eps in place; returns the norm of all eps together."""
        factors = [product_gradient(pair, self.moment(pair.A), self.moment(pair.B)) for pair in self.pairs]
        lengths = torch.stack([row_norms(L, R).norm() for L, R in factors])
        sizes = self._size(lengths)
        for pair, (L, R), size, length in zip(self.pairs, factors, sizes, lengths, strict=True):
            matrix(pair.base).sub_(L @ R * (size / length.clamp_min(torch.finfo(length.dtype).tiny)))
        return sizes.norm()
