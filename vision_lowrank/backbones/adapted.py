"""Whether a backbone carries adapters, what is inside then, and how to compute without them; all without PEFT.

A backbone carries adapters in one of two ways: inside a ``peft.PeftModel``, as ``attach`` and ``load`` return it, or as
factors in its linears, which compute the same and need no PEFT (:mod:`vision_lowrank.attachment.factored`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from ..errors import UserError


def adapted(model: nn.Module) -> bool:
    """Tell whether `model` is a ``PeftModel``: a model whose adapters can be switched, merged, saved and trained."""
    return hasattr(model, "get_base_model")


def backbone_of(model: nn.Module) -> Any:
    """Return the backbone inside a model with adapters; a backbone, or any other module, itself."""
    return model.get_base_model() if adapted(model) else model


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
