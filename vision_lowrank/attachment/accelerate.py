"""``accelerate_peft``: PEFT's own LoRA layers on the fused kernel, in place.

PEFT's LoRA layer computes y = x Wᵀ + b, then s · (drop(x) Aᵀ) Bᵀ, then their sum, as separate operators. The class of
each such layer is changed for a subclass that computes the same in one autograd function
(:mod:`vision_lowrank.kernels.linear`), equal within rounding, with less time and memory. Parameters, names, saving,
merging and everything else stay PEFT's. Dropout draws other masks than PEFT's would, from the same distribution.

Call by call a layer decides whether the kernel can do what is asked. PEFT's own code keeps running for DoRA and other
variants, for ``lora_bias``, batches with mixed adapters, several active adapters, merged and disabled adapters,
quantised or hooked linears, linears that train, and under ``torch.compile``.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn

from ..errors import UserError
from ..kernels.layers import dropout_of, forward_together, is_plain
from ..kernels.linear import Branch, fused_linear
from .exact import ExactLayer, exact


class FusedLoraLinear(ExactLayer, PeftLoraLinear):
    """PEFT's LoRA layer with the fused kernel for what it covers."""

    forward_together = staticmethod(forward_together)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the linear with its LoRA: (..., in) -> (..., out), with PEFT's further arguments."""
        branch = None if args or kwargs or torch.compiler.is_compiling() else self.branch()
        return super().forward(x, *args, **kwargs) if branch is None else fused_linear(x, *branch)

    def branch(self) -> Branch | None:
        """Return the present computation for the kernel; None where PEFT's own code must do it."""
        base = self.base_layer
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1 or not is_plain(base, nn.Linear.forward):
            return None
        (name,) = names
        down, up = self.lora_A[name], self.lora_B[name]
        dropout = dropout_of(self.lora_dropout[name])
        if name in self.lora_variant or dropout is None or not getattr(self, "cast_input_dtype_enabled", True):
            return None
        if not all(is_plain(linear, nn.Linear.forward) and linear.bias is None for linear in (down, up)):
            return None
        return Branch(base.weight, base.bias, down.weight, up.weight, self.scaling[name], dropout)


def accelerate_peft(model: nn.Module) -> int:
    """Make PEFT's own LoRA layers of `model` use the fused kernel, in place.

    Layers that are accelerated already, and subclasses of PEFT's layer, whose forward may be another, are left alone.

    Args:
        model: what ``peft.get_peft_model`` or ``vl.attach`` returned, or any module with LoRA layers inside.

    Returns:
        The number of LoRA linears on the kernel; those that have no adapter it covers stay on PEFT's own code.

    Raises:
        UserError: `model` has no LoRA layer on a linear.
    """
    count = fuse_loras(model)
    if count is None:
        raise UserError(
            f"{type(model).__name__} has no LoRA layer of PEFT on a linear: call peft.get_peft_model with a LoraConfig "
            "first; adapters of vision_lowrank need no acceleration."
        )
    return count


def fuse_loras(model: nn.Module) -> int | None:
    """Do as :func:`accelerate_peft`, but return None where there is no LoRA layer."""
    kinds = (PeftLoraLinear, exact(PeftLoraLinear), FusedLoraLinear)
    layers = [module for module in model.modules() if type(module) in kinds]
    covered = [layer for layer in layers if any(name not in layer.lora_variant for name in layer.lora_A)]
    for layer in covered:
        layer.__class__ = FusedLoraLinear
    return len(covered) if layers else None
