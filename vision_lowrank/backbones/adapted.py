"""Whether a backbone carries adapters, what is inside then, and how to compute without them; all without PEFT.

A backbone carries adapters in one of two ways: inside a ``peft.PeftModel``, as ``attach`` and ``load`` return it, or as
factors in its linears, which compute the same and need no PEFT (:mod:`vision_lowrank.attachment.factored`).
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from ..attention.split import fuse_attention
from ..errors import UserError
from .weights import RANDOM


def adapted(model: nn.Module) -> bool:
    """Tell whether `model` is a ``PeftModel``: a model whose adapters can be switched, merged, saved and trained."""
    return hasattr(model, "get_base_model")


def backbone_of(model: nn.Module) -> Any:
    """Return the backbone inside a model with adapters; a backbone, or any other module, itself."""
    return model.get_base_model() if adapted(model) else model


def plain_copy(model: nn.Module) -> Any:
    """Return a copy of the backbone alone, its attention fused, as ``load_backbone`` gives it."""
    copied = copy.deepcopy(model)
    return fuse_attention(copied.unload() if adapted(model) else copied)


def random_base(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a base with random weights, by their names in what ``load_backbone`` gives.

    Nobody can load them elsewhere, so they go with what is saved. Empty for any other base.
    """
    if getattr(backbone_of(model), "weights", None) != RANDOM:
        return {}
    state = plain_copy(model).state_dict()
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the adapters that are attached to `model`."""
    return tuple(model.peft_config) if adapted(model) else ()


def without_adapter(model: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which `model` computes what its base computes; a model without adapters always does.

    Raises:
        UserError: its adapters cannot be switched off.
    """
    if adapted(model):
        return model.disable_adapter()
    if getattr(model, "factored", None):
        raise UserError(
            "the adapter was loaded for prediction, with its factors inside the linears, and cannot be switched off: "
            "load it with attach=True."
        )
    return nullcontext()
