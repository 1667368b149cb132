"""What a checkpoint holds of every update: each passes its own tensors through ``pack`` and ``unpack``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn

WRAPPED = "_fsdp_wrapped_module."  # in names of modules, and not in those of tensors
Layers = Iterable[tuple[str, Any]]


def pack_each(layers: Layers, prefix: str, adapter_name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the tensors of a model into what a checkpoint of `adapter_name` holds.

    Args:
        layers: name and module of every adapted layer.
        prefix: the attribute of a layer that has its updates.
        adapter_name: the adapter.
        state: its tensors by their names in the model; others pass.
    """
    result = dict(state)
    for place, update, own in _each(layers, prefix, adapter_name, result):
        result.update({place + key: tensor for key, tensor in update.pack(own).items()})
    return result


def unpack_each(layers: Layers, prefix: str, adapter_name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn what a checkpoint holds into the tensors of a model, the inverse of :func:`pack_each`, each in the type of
    the tensor it replaces: PEFT puts it in that one's place, or copies it there.
    """
    result = dict(state)
    for place, update, own in _each(layers, prefix, adapter_name, result):
        types = {key: tensor.dtype for key, tensor in chain(update.named_parameters(), update.named_buffers())}
        unpacked = update.unpack({key: tensor.to(types.get(key, tensor.dtype)) for key, tensor in own.items()})
        result.update({place + key: tensor for key, tensor in unpacked.items()})
    return result


def _each(layers: Layers, prefix: str, adapter_name: str, state: dict[str, Tensor]) -> Iterator[tuple[str, Any, dict]]:
    """Yield the place of every update of an adapter, the update, and its tensors by their own names, taken out."""
    for name, layer in layers:
        updates: nn.ModuleDict = getattr(layer, prefix)
        if adapter_name in updates:
            place = f"{name.replace(WRAPPED, '')}.{prefix}.{adapter_name}."
            own = {key.removeprefix(place): state.pop(key) for key in list(state) if key.startswith(place)}
            if own:
                yield place, updates[adapter_name], own
