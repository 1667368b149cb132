"""Whether a backbone carries adapters, what is inside then, and how to compute without them; all without PEFT.

A backbone carries adapters in one of two ways: inside a ``peft.PeftModel``, as ``attach`` and ``load`` return it, or as
factors in its linears, which compute the same and need no PEFT (:mod:`vision_lowrank.attachment.factored`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from ..attention.split import fuse_attention
from ..errors import UserError
from ..kernels.factored import FactoredLinear
from .weights import RANDOM

COMPILED = "_orig_mod"  # what torch.compile calls the module inside


def adapted(model: nn.Module) -> bool:
    """Tell whether `model` is a ``PeftModel``: a model whose adapters can be switched, merged, saved and trained."""
    return hasattr(model, "get_base_model")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile``, ``DistributedDataParallel`` or ``DataParallel``; any other itself."""
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def uncompiled(model: nn.Module) -> nn.Module:
    """Take compilation off all modules inside `model`, in place, and return it :func:`unwrapped`."""
    model = unwrapped(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if _inside(child) is not None:
                setattr(parent, name, unwrapped(child))
    return model


def plain_path(name: str) -> str:
    """Return the name of a module or tensor as it is where nothing around it is compiled."""
    return name.replace(f"{COMPILED}.", "")


def check_bare(model: nn.Module) -> None:
    """Refuse to put an adapter into a model that is compiled or wrapped, wholly or in part.

    Raises:
        UserError: it is.
    """
    path = next((path for path, child in model.named_modules() if _inside(child) is not None), None)
    if path is not None:
        place = f"its '{path}'" if path else "it"
        raise UserError(
            f"a model takes its adapter before it is compiled or wrapped, and {place} is: attach or load first, then "
            "call torch.compile or DistributedDataParallel on what that returns."
        )


def _inside(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return module.module
    return module._modules.get(COMPILED)


def backbone_of(model: nn.Module) -> Any:
    """Return the backbone inside a model with adapters; a backbone, or any other module, itself."""
    return model.get_base_model() if adapted(model) else model


def plain_copy(model: nn.Module) -> Any:
    """Return a copy of the backbone alone, its attention fused, as ``load_backbone`` gives it."""
    copied = copy.deepcopy(model)
    return fuse_attention(copied.unload() if adapted(model) else copied)


def random_base(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a base with random weights, by their names in what ``load_backbone`` gives.

    Nobody can load them elsewhere, so they go with what is saved, as they were before an adapter changed them. Empty
    for any other base.
    """
    base = backbone_of(model)
    if getattr(base, "weights", None) != RANDOM:
        return {}
    if adapted(model) and base.drawn is not None:
        return base.drawn
    state = plain_copy(model).state_dict()
    return {plain_path(name): tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the adapters that are attached to `model`."""
    return tuple(model.peft_config) if adapted(model) else ()


def adapted_paths(model: nn.Module) -> list[str]:
    """List the paths of all modules inside `model` that carry adapters, with PEFT or as factors."""
    return [
        path
        for path, child in model.named_modules()
        if isinstance(child, FactoredLinear) or hasattr(child, "_active_adapter")
    ]


def without_adapter(model: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which `model` computes what its base computes; a model without adapters always does.

    Raises:
        UserError: its adapters cannot be switched off.
    """
    if adapted(model):
        return acting(model, ())
    if getattr(model, "factored", None):
        raise UserError(
            "the adapter was loaded for prediction, with its factors inside the linears, and cannot be switched off: "
            "load it with attach=True."
        )
    return nullcontext()


class Acting:
    """Which adapters of a ``PeftModel`` are active, switched off or merged, layer by layer, as they are now."""

    def __init__(self, model: Any) -> None:
        self._tops = [(top, top.active_adapter) for top in (model, model.base_model)]
        self._model, self._disabled = model, model._adapters_disabled
        self._parts = [
            (part, part._disable_adapters, _copied(part._active_adapter), list(part.merged_adapters))
            for part in model.modules()
            if hasattr(part, "merged_adapters") and hasattr(part, "_active_adapter")
        ]

    def choose(self, names: Sequence[str]) -> None:
        """Let exactly the adapters `names` act, none merged. What trains stays, unlike by PEFT's ``set_adapter``."""
        for part, _, _, merged in self._parts:
            if merged:
                part.unmerge()
            part._disable_adapters = not names
            part._active_adapter = list(names) or part._active_adapter
        self._model._adapters_disabled = not names
        if names:
            self._model.active_adapter, self._model.base_model.active_adapter = names[0], list(names)

    def put_back(self) -> None:
        """Make everything what it was; an adapter that was taken off meanwhile is not missed."""
        for part, disabled, active, merged in self._parts:
            part._disable_adapters, part._active_adapter = disabled, _copied(active)
            if merged and not part.merged_adapters:
                part.merge(adapter_names=merged)
        self._model._adapters_disabled = self._disabled
        for top, active in self._tops:
            top.active_adapter = active


@contextmanager
def acting(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Let exactly the adapters `names` of a ``PeftModel`` act inside; afterwards all is as before, merged ones too."""
    before = Acting(model)
    try:
        before.choose(names)
        yield
    finally:
        before.put_back()


def _copied(active: str | list[str]) -> str | list[str]:
    return active if isinstance(active, str) else list(active)
