"""GGPO: gradients at randomly perturbed weights, with noise that follows weight norms and gradient norms.

Paper: "LoRA-GGPO: Mitigating Double Descent in LoRA Fine-Tuning via Gradient-Guided Perturbation Optimization", arXiv
2502.14538 (first version). For a layer with W = W0 + s B A (out, in), one draw per layer and optimiser step t of T::

    eps_ij = std_i xi_ij,  xi ~ N(0, 1),     std_i = kappa_t (sigma ‖W_i‖ + beta ‖G_i‖^p) / sqrt(fan)
    losses and gradients are those at W + eps;  the optimiser steps A and B without it

with rows W_i, G = s (B gA + gB A) from the gradients of the step before, as the optimiser saw them (clipped), p =
``grad_power``, fan the layer's inputs or outputs. ``combine: quadrature`` adds the two terms as a root of squares.
``ramp: cosine`` has kappa_t = (1 - cos(pi t / T)) / 2, else 1. There is no noise before the first gradients exist, none
in evaluation, and none outside adapted layers. With beta = 0, fan ``in`` and the ramp this is Flat-LoRA, whose rho is
sigma.

eps is added to the frozen W0 in place and W0 is put back from a copy, so frozen weights are unchanged bit for bit after
each step; adapted base weights take their memory twice meanwhile. With ``grad_through_noise: false`` x epsᵀ is added to
the layer's output instead, and the gradient to x ignores eps. Noise is drawn from the address (seed, stage, step,
layer), so all micro-batches, processes and resumed runs draw the same.

Reconstructed: the paper gives weight and gradient norms as its ingredients; the formula is that of a public port and of
Flat-LoRA. The paper's second version replaced the rule by MGPO (:mod:`.mgpo`) and finds undirected noise of little use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapters.tuner import tuner_layers
from ..config.schema import EngineConfig, RunConfig
from ..errors import UserError
from ..registry import register
from .base import Closure, Rule, StepContext, Steps
from .tensors import pairs, require_adapter
from .weights import matrix, product_gradient, restored, row_norms, weight_change


@register("rule", "ggpo", summary="random noise on adapted weights (LoRA-GGPO, Flat-LoRA)", paper="arXiv 2502.14538")
class Ggpo(Rule):
    """Options of GGPO."""

    type: Literal["ggpo"] = "ggpo"
    sigma: float = Field(0.03, ge=0, allow_inf_nan=False, description="noise in proportion to the norm of W's rows")
    beta: float = Field(0.01, ge=0, allow_inf_nan=False, description="noise in proportion to the norm of G's rows")
    fan: Literal["in", "out"] = Field("in", description="noise is divided by the root of the layer's inputs or outputs")
    grad_power: Literal[1, 2] = Field(2, description="power of the norm of G's rows")
    combine: Literal["sum", "quadrature"] = Field("sum", description="how the two parts of the noise are added")
    ramp: Literal["none", "cosine"] = Field("none", description="`cosine`: noise grows from zero over the stage")
    grad_through_noise: bool = Field(True, description="the gradient to a layer's input sees the noise too")

    @property
    def moves_base(self) -> bool:
        """The noise sits on frozen weights."""
        return True

    def check(self, config: RunConfig) -> None:
        """Refuse runs without adapter, and noise beside compiled layers."""
        require_adapter("ggpo", config)
        self.check_compile(config.engine)

    def check_compile(self, settings: EngineConfig) -> None:
        """Refuse noise beside layers that are compiled, whose hooks ``torch.compile`` overlooks.

        Raises:
            UserError: `settings` ask for it.
        """
        if settings.compile and not self.grad_through_noise:
            raise UserError(
                "rule ggpo: noise beside a layer is added by a hook, which torch.compile overlooks: set "
                "engine.compile=false, or rule.grad_through_noise=true."
            )

    def start(self, stage: StepContext) -> GgpoSteps:
        """Start adding noise around each step's gradients."""
        return GgpoSteps(self, stage)


class GgpoSteps(Steps):
    """Noise of one stage.

    Attributes:
        step: steps done.
        rows: norms (out,) of G's rows, per layer; None before the first finite gradients.
    """

    def __init__(self, options: Ggpo, stage: StepContext) -> None:
        super().__init__(stage)
        self.options = options
        self.step = 0
        self.rows: list[Tensor] | None = None

    def prepare(self) -> None:
        """Find the pairs.

        Raises:
            UserError: there are none, or a layer does not train one pair B A alone.
        """
        self.options.check_compile(self.stage.settings)
        self.pairs = pairs(self.stage.model)
        layers = dict(tuner_layers(self.stage.model))
        self.layers = [layers[pair.name] for pair in self.pairs]

    def gradients(self, closure: Closure) -> dict[str, float]:
        """Compute the gradients at W + eps."""
        # The optimiser will have moved A and B when G is computed.
        self.before = [pair._replace(A=pair.A.detach().clone(), B=pair.B.detach().clone()) for pair in self.pairs]
        if self.rows is None:
            return closure()
        stds = [self.std(number, rows) for number, rows in enumerate(self.rows)]
        noisy = self._noisy_weights if self.options.grad_through_noise else self._noisy_outputs
        with noisy(stds):
            return closure()

    def after_step(self, step: int) -> None:
        """Compute row norms of G for the next step; keep those of before where a gradient was not finite."""
        self.step = step
        rows = [
            row_norms(*product_gradient(before, pair.A.grad, pair.B.grad))
            for before, pair in zip(self.before, self.pairs, strict=True)
        ]
        if all(bool(each.isfinite().all()) for each in rows):
            self.rows = rows

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the row norms."""
        return {"step": self.step, "rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        self.step, rows = state["step"], state["rows"]
        self.rows = rows and [each.to(pair.A.device) for each, pair in zip(rows, self.pairs, strict=True)]

    @torch.no_grad()
    def std(self, number: int, rows: Tensor) -> Tensor:
        """Compute std (out,) of a layer's noise in this step, float32 or wider, for row norms (out,) of its G."""
        options, base = self.options, self.pairs[number].base
        weight = matrix(base) + weight_change(self.layers[number])
        wide = torch.promote_types(weight.dtype, torch.float32)
        own = options.sigma * torch.linalg.vector_norm(weight, dim=1, dtype=wide)
        gradient = options.beta * rows.to(wide) ** options.grad_power
        total = own + gradient if options.combine == "sum" else (own.square() + gradient.square()).sqrt()
        kappa = (1 - math.cos(math.pi * self.step / self.stage.settings.steps)) / 2 if options.ramp == "cosine" else 1.0
        return total * kappa / math.sqrt(weight.shape[1] if options.fan == "in" else weight.shape[0])

    def noise(self, number: int, std: Tensor) -> Tensor:
        """Draw eps (out, in) of a layer in this step, the same at every call."""
        shape = matrix(self.pairs[number].base).shape
        address = (self.stage.seed, self.stage.index, self.step, number)
        seed = int(np.random.SeedSequence(address).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator(std.device).manual_seed(seed)
        return std[:, None] * torch.randn(shape, generator=generator, device=std.device, dtype=std.dtype)

    @contextmanager
    def _noisy_weights(self, stds: list[Tensor]) -> Iterator[None]:
        with restored([pair.base.weight for pair in self.pairs]):
            with torch.no_grad():
                for number, std in enumerate(stds):
                    matrix(self.pairs[number].base).add_(self.noise(number, std))
            yield

    @contextmanager
    def _noisy_outputs(self, stds: list[Tensor]) -> Iterator[None]:
        # The noise is drawn again in every call: no layer's is ever held.
        hooks = [
            self.pairs[number].base.register_forward_hook(partial(self._add_noise, number, std))
            for number, std in enumerate(stds)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add_noise(self, number: int, std: Tensor, base: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        with torch.no_grad():
            noise = F.linear(inputs[0], self.noise(number, std).to(inputs[0].dtype))
        return y + noise
