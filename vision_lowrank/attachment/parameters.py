"""Which parameters of a backbone belong to its adapter, and which base weights come from some block on.

What comes after block l is not read off names, which differ from library to library: it is what a gradient reaches when
the input of block l is cut off from the graph, found with one pass over a blank picture.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.adapted import adapted, backbone_of
from ..errors import UserError
from ..modes import preserved

Parameters = dict[str, nn.Parameter]


def adapter_parameters(model: nn.Module) -> Parameters:
    """Return the adapter's tensors that require gradients now, by name in the backbone; none without an adapter."""
    prefix = adapter_prefix(model)
    named = backbone_of(model).named_parameters()
    return {name: p for name, p in named if prefix and prefix in name and p.requires_grad}


def encoder_parameters(model: nn.Module, l_ft: int | None) -> Parameters:
    """Return the base weights of the image tower's blocks from `l_ft` on and of what follows, by name in the backbone.

    Args:
        model: a backbone, attached or not.
        l_ft: index of the first block; -1 for the whole encoder, embeddings included; None for nothing.

    Raises:
        UserError: `l_ft` is below -1, or the backbone has no known blocks.
    """
    if l_ft is None:
        return {}
    backbone, prefix = backbone_of(model), adapter_prefix(model)
    if l_ft < -1:
        raise UserError(f"l_ft={l_ft}: give the index of a block, from 0, or -1 for the whole encoder.")
    if l_ft >= 0 and "vision" not in backbone.towers:
        raise UserError(f"l_ft={l_ft}: backbone '{backbone.name}' has no known blocks; set l_ft=-1 for all of it.")
    blocks = backbone.towers["vision"].blocks if l_ft >= 0 else ()
    if l_ft >= 0 and l_ft >= len(blocks):
        return {}
    named = backbone.named_parameters()
    base = {name: p for name, p in named if p.is_floating_point() and not (prefix and prefix in name)}
    weight, size = next(iter(base.values())), backbone.preprocess.size
    pixels = weight.new_zeros(1, 3, size, size)
    with preserved(model), torch.enable_grad():
        model.eval()
        for parameter in base.values():
            parameter.requires_grad_()
        with _cut(backbone.get_submodule(blocks[l_ft])) if blocks else nullcontext():
            features = backbone.encode_image(pixels)
        gradients = torch.autograd.grad(features.sum(), list(base.values()), allow_unused=True)
    return {name: p for (name, p), gradient in zip(base.items(), gradients, strict=True) if gradient is not None}


def adapter_prefix(model: nn.Module) -> str | None:
    """Return what the names of all adapter tensors of `model` contain; None without an adapter."""
    return model.base_model.prefix if adapted(model) else None


def _cut(block: nn.Module) -> Any:
    """Return a context in which no gradient leaves `block` by its input."""

    def detach(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.detach() if isinstance(x, Tensor) else x for x in inputs)

    return block.register_forward_pre_hook(detach)
