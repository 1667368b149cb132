"""What several gradient rules do with the weights of adapted layers: read ΔW and G, move weights and put them back.

For ΔW = s B A with A (r, in), B (out, r) and their gradients gA, gB, *the gradient of the product* is

    G = s (B gA + gB A) = L R,    L = s [B, gB] (out, 2r),    R = [gA; A] (2r, in)

whose row norms need no (out, in) matrix: ‖G_i‖² = L_i (R Rᵀ) L_iᵀ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..adapters.tuner import AdapterLayer
from .tensors import Pair


def weight_change(layer: AdapterLayer | PeftLoraLinear) -> Tensor:
    """Compute ΔW (out, in) of the active adapters, differentiable, in the adapters' own type under autocast too.

    Args:
        layer: a layer of this package whose updates have factors, or PEFT's LoRA on a linear.
    """
    names = layer.active_adapters
    with torch.autocast(layer.base_layer.weight.device.type, enabled=False):
        if isinstance(layer, AdapterLayer):
            return sum(layer.weight_update[name].delta() for name in names if name in layer.weight_update)
        pairs = [(layer.lora_B[n].weight, layer.lora_A[n].weight, n) for n in names if n in layer.lora_A]
        return sum(layer.scaling[name] * (B @ A) for B, A, name in pairs)


def matrix(linear: nn.Module) -> Tensor:
    """View the weight of a linear as (out, in): Conv1D stores (in, out)."""
    return linear.weight.T if isinstance(linear, Conv1D) else linear.weight


@contextmanager
def restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Allow changes of `tensors` in place inside; afterwards they are as before, bit for bit, whatever happened."""
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)


def product_gradient(pair: Pair, grad_A: Tensor | None, grad_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute L (out, 2r), R (2r, in) with G = L R, float32 or wider; a gradient that is None counts as zero.

    Args:
        pair: B A of one layer.
        grad_A: (r, in), or anything else of that shape, such as a first moment.
        grad_B: (out, r), likewise.
    """
    wide = torch.promote_types(pair.A.dtype, torch.float32)
    A, B = pair.A.detach().to(wide), pair.B.detach().to(wide)
    grad_A = torch.zeros_like(A) if grad_A is None else grad_A.to(wide)
    grad_B = torch.zeros_like(B) if grad_B is None else grad_B.to(wide)
    return pair.scale * torch.cat([B, grad_B], dim=1), torch.cat([grad_A, A])


def row_norms(L: Tensor, R: Tensor) -> Tensor:
    """Compute norms (out,) of the rows of L R."""
    # Rounding can make the square of a tiny norm negative.
    return ((L @ (R @ R.T)) * L).sum(dim=1).clamp_min(0).sqrt()
