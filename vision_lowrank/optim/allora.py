"""ALLoRA: each row of ΔW learns at a rate that falls as the row grows, instead of LoRA's dropout and alpha / r.

Paper: "ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws", arXiv 2410.09692. For ΔW (out, in) of any adapter,
of scale 1 and without dropout, with x (N, in), δ = dL/dy (N, out) and G = dL/dΔW = δᵀ x::

    y = x (W + ΔW)ᵀ + b,      c_i = 1 / sqrt(‖ΔW_i‖ + 1 / eta²)      per row i, from the present ΔW, a constant
    backward:  ΔW's tensors get the gradient of diag(c) G, for LoRA gB = c G Aᵀ and gA = Bᵀ c G;  x gets δ (W + ΔW)

The norm itself stands under the root, not its square: c = eta for a row of zeros, and about ‖ΔW_i‖^(-1/2) for a large
one. eta takes the place of alpha / r. x gets its true gradient, so ΔW is computed as one (out, in) tensor whose own
gradient a hook rescales; rescaling ``.grad`` afterwards could not give gA. That costs one (out, in) product per layer
and call in training, and nothing at inference, where the layers are as they were.

``apply="grad"`` is the paper's rule. Adam divides each coordinate by the size of its own gradients, so a constant c_i
cancels in B's step; SGD shows the rule at full strength. ``apply="update"`` is an *extension* of ours: gradients stay
plain, and row i of B's step (weight decay included) is multiplied by c_i after the optimiser; A's step is left
alone. It needs adapters whose ΔW is one trained pair B A. Say which of the two a result used.

Clipping by global norm partly undoes the rule at the start, where gradients are eta times larger: scale the threshold.
Reconstructed: the formula of c and the default eta are those of third-party code, as the paper's could not be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapters.base import WeightUpdate
from ..adapters.tuner import AdapterLayer, tuner_layers
from ..config.schema import RunConfig
from ..errors import UserError
from ..kernels.layers import is_plain
from ..registry import register
from .base import Closure, Rule, StepContext, Steps
from .tensors import no_adapter, pairs, require_adapter
from .weights import weight_change


@register("rule", "allora", summary="rows of ΔW learn slower as they grow (ALLoRA)", paper="arXiv 2410.09692")
class Allora(Rule):
    """Options of ALLoRA."""

    type: Literal["allora"] = "allora"
    eta: float = Field(2.0, gt=0, allow_inf_nan=False, description="c of a row that is zero; try 1, 2, 4, 8")
    apply: Literal["grad", "update"] = Field("grad", description="rescale gradients (the paper) or B's steps (ours)")

    def check(self, config: RunConfig) -> None:
        """Refuse runs without adapter and adapters with dropout."""
        require_adapter("allora", config)
        for name in ("dropout", "lora_dropout"):
            if value := config.adapter.options.get(name):
                raise UserError(f"rule allora: adapter.{name} = {value}, but ALLoRA works without: set it to 0.")

    def start(self, stage: StepContext) -> Steps:
        """Start rescaling gradients or steps."""
        return ScaledGradients(self, stage) if self.apply == "grad" else ScaledUpdates(self, stage)


def row_scales(delta: Tensor, eta: float) -> Tensor:
    """Compute c (out,) of ΔW (out, in): float32 or wider, without gradient."""
    wide = torch.promote_types(delta.dtype, torch.float32)
    norms = torch.linalg.vector_norm(delta.detach(), dim=1, dtype=wide)
    return (norms + 1 / eta**2).rsqrt()


class ScaledGradients(Steps):
    """The paper's rule: while gradients are computed, adapted layers have a forward with the hook on ΔW."""

    def __init__(self, options: Allora, stage: StepContext) -> None:
        super().__init__(stage)
        self.options = options

    def prepare(self) -> None:
        """Check every adapted layer.

        Raises:
            UserError: there is none, or one that has no ΔW, a scale other than 1, or dropout.
        """
        self.layers = checked_layers(self.stage.model)

    def gradients(self, closure: Closure) -> dict[str, float]:
        """Run the closure once, with the hooks."""
        with hooked(self.layers, self.options.eta):
            return closure()


class ScaledUpdates(Steps):
    """The extension: B's steps rescaled row by row."""

    def __init__(self, options: Allora, stage: StepContext) -> None:
        super().__init__(stage)
        self.options = options

    def prepare(self) -> None:
        """Check every adapted layer.

        Raises:
            UserError: as above, or a layer does not train one pair B A alone.
        """
        self.layers = checked_layers(self.stage.model)
        self.pairs = pairs(self.stage.model)

    def gradients(self, closure: Closure) -> dict[str, float]:
        """Compute plain gradients; c and B as they are before the step are kept."""
        with torch.no_grad():
            self.scales = [row_scales(weight_change(layer), self.options.eta) for layer in self.layers]
            self.before = [pair.B.clone() for pair in self.pairs]
        return closure()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Set B <- B_before + c (B - B_before)."""
        for pair, before, c in zip(self.pairs, self.before, self.scales, strict=True):
            pair.B.copy_(before + c[:, None] * (pair.B - before))


@contextmanager
def hooked(layers: Sequence[BaseTunerLayer], eta: float) -> Iterator[None]:
    """Make `layers` compute through ΔW with its gradient rescaled inside; afterwards they are as before.

    A forward in the instance also tells attention that q, k and v must be called, not fused (``is_plain``).
    """
    for layer in layers:
        layer.forward = HookedForward(layer, eta)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class HookedForward:
    """What a layer computes while gradients are made."""

    def __init__(self, layer: BaseTunerLayer, eta: float) -> None:
        self.layer, self.eta = layer, eta

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the layer: (..., in) -> (..., out); its usual forward where its adapters are disabled or merged."""
        layer, base = self.layer, self.layer.base_layer
        if args or kwargs or layer.disable_adapters or layer.merged:
            return type(layer).forward(layer, x, *args, **kwargs)
        delta = weight_change(layer)
        if delta.requires_grad:
            c = row_scales(delta, self.eta)
            delta.register_hook(lambda G: (c[:, None] * G).to(G.dtype))
        if _exact_sum(base, x, delta):
            return F.linear(x, base.weight + delta, base.bias)
        result = base(x)
        return (result + F.linear(x.to(delta.dtype), delta)).to(result.dtype)


def _exact_sum(base: nn.Module, x: Tensor, delta: Tensor) -> bool:
    """Tell whether W + ΔW loses nothing: in half precision, as under autocast, it would swallow a small ΔW."""
    same = is_plain(base, nn.Linear.forward) and base.weight.dtype == x.dtype == delta.dtype
    return same and x.dtype.itemsize >= 4 and not torch.is_autocast_enabled(x.device.type)


def checked_layers(model: nn.Module) -> list[BaseTunerLayer]:
    """List the layers whose adapters train, in order.

    Raises:
        UserError: there is none, or one has no ΔW, a scale other than 1, or dropout.
    """
    found = []
    for name, layer in tuner_layers(model):
        if not any(p.requires_grad for p in nn.Module.parameters(layer)):  # type: ignore[arg-type]
            continue
        for scale in _scales(layer):
            if scale is None:
                raise UserError(f"rule allora: '{name}' cannot give ΔW as a matrix: use adapter.type=lora.")
            if not math.isclose(scale, 1, rel_tol=1e-3):
                raise UserError(
                    f"rule allora: '{name}' has scale {scale:.4g}, whose place eta takes: set adapter.alpha to sqrt(r) "
                    "with scaling=rslora, or to r with scaling=lora, so that it is 1."
                )
        if any(isinstance(part, nn.Dropout) and part.p for part in nn.Module.modules(layer)):  # type: ignore[arg-type]
            raise UserError(f"rule allora: '{name}' has dropout, but ALLoRA works without: set adapter.dropout=0.")
        found.append(layer)
    if not found:
        raise no_adapter("allora")
    return found


def _scales(layer: BaseTunerLayer) -> list[float | None]:
    """Return the scale of each active adapter; None for one whose forward is not x ΔWᵀ."""
    if isinstance(layer, PeftLoraLinear):
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        odd = layer.lora_variant.keys() | {name for name, bias in layer.lora_bias.items() if bias}
        return [None if name in odd else layer.scaling[name] for name in names]
    if not isinstance(layer, AdapterLayer) or type(layer).forward is not AdapterLayer.forward:
        return [None]
    updates = [layer.weight_update[name] for name in layer.active_adapters if name in layer.weight_update]
    return [_scale(update) for update in updates]


def _scale(update: WeightUpdate) -> float | None:
    factors = update.own_factors()
    if factors is not None:
        return factors.scale
    return update.scale if type(update).delta is not WeightUpdate.delta else None
