"""Whose weight is it? Before a weight is changed for one layer, all modules that compute with it are looked for.

A weight may be used in several places: a linear tied to an embedding or to another linear, one module under two names.
An adapter sits on one of them, so the changed weight would change the others too. Every module of the model counts,
adapted or not.
"""

from __future__ import annotations

from collections.abc import Mapping

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..errors import UserError


def check_owned(model: nn.Module) -> None:
    """Refuse to merge adapters into weights that other modules of `model` compute with.

    Raises:
        UserError: there is one; the message names both places.
    """
    layers = {name: child for name, child in model.named_modules() if isinstance(child, BaseTunerLayer)}
    bases = {f"{name}.base_layer": layer.get_base_layer() for name, layer in layers.items()}
    held = {id(layer.get_base_layer()): {id(each) for each in layer.modules()} for layer in layers.values()}
    if (pair := shared(model, bases, held)) is not None:
        first, second = pair
        raise UserError(
            f"'{first}' shares its weight with '{second}', so no adapter can be merged into it: keep the adapter, or "
            "give one of them a weight of its own before attaching (module.weight = nn.Parameter(weight.clone()))."
        )


def shared(
    model: nn.Module, modules: Mapping[str, nn.Module], held: Mapping[int, set[int]] | None = None
) -> tuple[str, str] | None:
    """Find one of `modules` whose tensors another module of `model` has as well, or that is found in a second place.

    Args:
        model: the whole of it.
        modules: those that are about to change, by name.
        held: id of a module -> ids of those that may hold it; None for any one holder.

    Returns:
        Its name and that of the other place, without ``.base_layer``; None where nothing is shared.
    """
    places, owners = _uses(model)
    for name, module in modules.items():
        holders = places.get(id(module), [])
        allowed = held[id(module)] if held else {parent for parent, _ in holders[:1]}
        others = [place for parent, place in holders if parent not in allowed]
        others += [place for parent, place in holders if parent in allowed][1:]
        for tensor in module.parameters(recurse=False):
            others += [place for owner, place in owners[_key(tensor)] if owner != id(module)]
        if others:
            return name.removesuffix(".base_layer"), others[0].removesuffix(".base_layer")
    return None


def _uses(model: nn.Module) -> tuple[dict[int, list[tuple[int, str]]], dict[int, list[tuple[int, str]]]]:
    """Return id of a module -> (id of the parent, path), and memory of a parameter -> (id of its module, path)."""
    places: dict[int, list[tuple[int, str]]] = {}
    owners: dict[int, list[tuple[int, str]]] = {}
    for path, module in model.named_modules():
        for name, child in module._modules.items():
            if child is not None:
                places.setdefault(id(child), []).append((id(module), f"{path}.{name}".lstrip(".")))
        for tensor in module._parameters.values():
            if tensor is not None:
                owners.setdefault(_key(tensor), []).append((id(module), path))
    return places, owners


def _key(tensor: Tensor) -> int:
    """Return what two parameters have in common if they are one, or two names of one memory."""
    return tensor.data_ptr() or id(tensor)
