"""From "q and v of the last four vision blocks" to module paths.

A backbone names the blocks of its towers and what stands where inside a block; :func:`select` combines the two. The
names of layer subsets are those of CLIP-LoRA (arXiv 2405.18541): with L blocks, ``bottom mid up`` are thirds,
``half-bottom half-up`` halves, ``top3`` the last three, ``all`` everything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import nn

from ..backbones.base import Backbone, Tower
from ..errors import UserError, near_miss

Layers: TypeAlias = str | Sequence[int]

_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(-?\d+)?)?")


def select(
    backbone: Backbone,
    towers: Sequence[str] = ("vision", "text"),
    layers: Layers | Mapping[str, Layers] = "all",
    modules: Sequence[str] = ("q", "k", "v"),
    beyond_linears: Sequence[str] = (),
) -> list[str]:
    """Select paths of modules inside `backbone`, tower by tower, block by block, in the order of `modules`.

    Args:
        backbone: with split attention where `modules` asks for parts of it.
        towers: names of towers.
        layers: for every tower, or per tower by name: ``"all"``, a list of block indices (negative from the end), a
            slice such as ``"-4:"``, or a named subset such as ``"half-up"``.
        modules: logical names, of ``q k v o fc1 fc2``.
        beyond_linears: names that a method adapts although they are no linears: ``mlp``, the module that holds ``fc1``
            and ``fc2``; ``attention``, the core of split attention between its projections; ``block``, all of it.

    Raises:
        UserError: an unknown tower, layer or module, nothing chosen, or attention that is not split.
    """
    towers, modules = _listed("towers", towers), _listed("modules", modules)
    if isinstance(layers, Mapping):
        for name in layers:
            tower_named(backbone, name)
    paths = []
    for tower in (tower_named(backbone, name) for name in towers):
        chosen = layers.get(tower.name, "all") if isinstance(layers, Mapping) else layers
        for index in layer_indices(chosen, len(tower.blocks)):
            for name in modules:
                find = _BEYOND_LINEARS[name] if name in beyond_linears else _linear
                paths.append(find(backbone, tower, index, name))
    return paths


def layer_indices(layers: Layers, count: int) -> list[int]:
    """List the indices in [0, count) that `layers` names, ascending, each once.

    Raises:
        UserError: an index is out of range or none, a name is unknown, or nothing is left.
    """
    if isinstance(layers, int):
        raise UserError(
            f"layers = {layers} is one number: write [{layers}] for that block, ':{layers}' for the first ones."
        )
    if isinstance(layers, str):
        indices = list(range(count))[_slice(layers, count)]
    else:
        for index in layers:
            if not isinstance(index, int) or isinstance(index, bool):
                raise UserError(f"layers {layers!r} holds {index!r}, which is no block number: use numbers from 0.")
            if not -count <= index < count:
                raise UserError(f"layer {index} does not exist: there are {count} blocks, 0 to {count - 1}.")
        indices = [index % count for index in layers]
    if not indices:
        raise UserError(f"layers {layers!r} choose none of {count} blocks: use 'all', a list or a slice such as '-4:'.")
    return sorted(set(indices))


def _slice(layers: str, count: int) -> slice:
    subsets = {
        "all": slice(None),
        "top3": slice(-3, None),
        "bottom": slice(count // 3),
        "mid": slice(count // 3, 2 * count // 3),
        "up": slice(2 * count // 3, None),
        "half-bottom": slice(count // 2),
        "half-up": slice(count // 2, None),
    }
    if layers in subsets:
        return subsets[layers]
    match = _SLICE.fullmatch(layers)
    if match is None or match[3] == "0":
        hint = near_miss(layers, subsets)
        raise UserError(
            f"unknown layers '{layers}'.{hint} Known: {', '.join(subsets)}, a list, or a slice such as '-4:'."
        )
    return slice(*(int(number) if number else None for number in match.groups()))


def _listed(what: str, names: Sequence[str]) -> list[str]:
    names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if not names:
        raise UserError(f"{what} is empty: name at least one.")
    return names


def tower_named(backbone: Backbone, name: str) -> Tower:
    """Return the tower of that name.

    Raises:
        UserError: there is none.
    """
    if not backbone.towers:
        raise UserError(
            f"backbone '{backbone.name}' has no known blocks: adapt all of its layers with modules: [all], or name "
            "those you mean by target_modules of the config."
        )
    if name not in backbone.towers:
        hint = near_miss(name, backbone.towers)
        raise UserError(f"backbone '{backbone.name}' has no tower '{name}'.{hint} Known: {', '.join(backbone.towers)}.")
    return backbone.towers[name]


def _linear(backbone: Backbone, tower: Tower, index: int, name: str) -> str:
    """Return the path of logical module `name` in block `index`, checked to be a linear (perhaps adapted already)."""
    if name not in tower.modules:
        hint = near_miss(name, tower.modules)
        known = ", ".join(tower.modules)
        raise UserError(
            f"tower '{tower.name}' of '{backbone.name}' has no module '{name}'.{hint} Known: {known}; "
            "or [all], every linear."
        )
    path = f"{tower.blocks[index]}.{tower.modules[name]}"
    try:
        module = backbone.get_submodule(path)
    except AttributeError:
        raise UserError(f"'{path}' does not exist: call split_attention(backbone) first.") from None
    if not isinstance(getattr(module, "base_layer", module), nn.Linear):
        raise UserError(f"'{path}' is a {type(module).__name__}, not a linear: leave '{name}' out for this tower.")
    return path


def _mlp(backbone: Backbone, tower: Tower, index: int, name: str) -> str:
    """Return the path of the module that holds ``fc1`` and ``fc2`` of block `index`, adapted already or not."""
    holders = {tower.modules.get(part, "").rpartition(".")[0] for part in ("fc1", "fc2")}
    if len(holders) != 1 or holders == {""}:
        raise UserError(
            f"tower '{tower.name}' of '{backbone.name}' has no module '{name}' that holds fc1 and fc2: leave it out."
        )
    return f"{tower.blocks[index]}.{holders.pop()}"


def _attention(backbone: Backbone, tower: Tower, index: int, name: str) -> str:
    """Return the path of the core of split attention in block `index`, adapted already or not."""
    path = f"{tower.blocks[index]}.{tower.modules.get('o', '').rpartition('.')[0]}.core"
    try:
        backbone.get_submodule(path)
    except AttributeError:
        raise UserError(
            f"tower '{tower.name}' of '{backbone.name}' has no '{name}' that split_attention could split: leave it out."
        ) from None
    return path


def _block(backbone: Backbone, tower: Tower, index: int, name: str) -> str:
    """Return the path of block `index`."""
    return tower.blocks[index]


_BEYOND_LINEARS = {"mlp": _mlp, "attention": _attention, "block": _block}
