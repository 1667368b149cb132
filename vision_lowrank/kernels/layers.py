"""How layers with adapters reach the fused function, alone or together with others that have the same input.

A layer that can be fused has ``branch() -> Branch | None``, its present computation as one branch of
:func:`~vision_lowrank.kernels.linear.fused_linears`, or None while its forward is anything else (merged, disabled, an
update without factors, hooks that must see the parts), and ``forward_together = staticmethod(forward_together)``, by
which an attention finds out that its q, k and v can share work without knowing what an adapter is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .linear import fused_linear, fused_linears


def forward_together(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """Compute ``[layer(x) for layer in layers]``, sharing the down-projection where possible.

    Layers with hooks, which must be called, and layers whose dropout is active, whose masks are their own, are
    computed alone.
    """
    if torch.compiler.is_compiling():
        return [layer(x) for layer in layers]
    branches = [layer.branch() if hasattr(layer, "branch") and is_plain(layer) else None for layer in layers]
    shared = [branch for branch in branches if branch is not None and not branch.dropout]
    results = iter(fused_linears(x, shared) if shared else ())
    outputs = []
    for layer, branch in zip(layers, branches, strict=True):
        if branch is None:
            outputs.append(layer(x))
        else:
            outputs.append(fused_linear(x, *branch) if branch.dropout else next(results))
    return outputs


def is_plain(module: nn.Module, forward: object = None) -> bool:
    """Tell whether a call of `module` is its class's forward and nothing else: no hooks, no forward of its own.

    Args:
        module: any module.
        forward: what the class's forward must be; None for any.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks) or "forward" in module.__dict__ or nn.modules.module._has_any_global_hook():
        return False
    return forward is None or type(module).forward is forward


def dropout_of(module: nn.Module) -> float | None:
    """Return the probability with which `module` drops now, 0 in evaluation; None where it is not ordinary dropout."""
    if not is_plain(module):
        return None
    if type(module) is nn.Identity:
        return 0.0
    if type(module) is nn.Dropout:
        return module.p if module.training else 0.0
    return None
