"""``modules: all``: every linear of the chosen blocks, and every convolution where the method can adapt some.

It needs no logical names, so it works where a library's blocks are unlike a transformer's (Swin, BEiT, ConvNeXt), and
on pictures' towers without known blocks (ResNet), which are taken whole. A layer whose weight a model reads without
calling it, as pooling by attention does, could not learn: one run on a few random inputs tells which are called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..backbones.base import Backbone
from ..backbones.roles import ImageEncoder
from ..errors import UserError
from ..modes import eval_mode
from .select import Layers, layer_indices, tower_named

ALL = "all"
VISION = "vision"


def select_all(
    backbone: Backbone, towers: Sequence[str], layers: Layers | Mapping[str, Layers], convolutions: bool
) -> list[str]:
    """Select paths of all linears, and perhaps convolutions, that work inside the blocks of `towers`.

    Args:
        backbone: with split attention.
        towers: names of towers; ``vision`` also where the pictures' tower has no known blocks.
        layers: as for :func:`~.select.select`; ``all`` for a tower without blocks.
        convolutions: also ordinary two-dimensional convolutions, not grouped.

    Raises:
        UserError: an unknown tower or layer, or nothing is left.
    """
    roots = [root for name in towers for root in _roots(backbone, name, layers)]
    kinds = (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,)
    found: dict[str, nn.Module] = {}
    for path, module in backbone.named_modules():
        inside = any(path.startswith(f"{root}.") for root in roots)
        base = getattr(module, "base_layer", module)
        taken = any(path.startswith(f"{other}.") for other in found)
        if inside and not taken and isinstance(base, kinds) and getattr(base, "groups", 1) == 1:
            found[path] = module
    called = _called(backbone, found)
    if not called:
        more = "" if convolutions else ", which has convolutions alone perhaps: use lora, which adapts them"
        raise UserError(f"modules = all finds no linear in {', '.join(towers)} of '{backbone.name}'{more}.")
    return called


def towers_of(backbone: Backbone) -> tuple[str, ...]:
    """Name all towers that ``modules: all`` can adapt: the known ones, and the pictures' one in any case."""
    unknown = isinstance(backbone, ImageEncoder) and VISION not in backbone.towers
    return ((VISION,) if unknown else ()) + tuple(backbone.towers)


def _roots(backbone: Backbone, name: str, layers: Layers | Mapping[str, Layers]) -> list[str]:
    chosen = layers.get(name, ALL) if isinstance(layers, Mapping) else layers
    if name == VISION and name in towers_of(backbone) and name not in backbone.towers:
        if chosen != ALL:
            raise UserError(f"the pictures' tower of '{backbone.name}' has no known blocks: leave `layers` out for it.")
        return ["model.visual" if hasattr(backbone.model, "visual") else "model"]
    tower = tower_named(backbone, name)
    return [tower.blocks[index] for index in layer_indices(chosen, len(tower.blocks))]


@torch.no_grad()
def _called(backbone: Backbone, modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the paths of the modules that run when the backbone does; buffers and random state stay."""
    called: set[str] = set()
    handles = [each.register_forward_hook(lambda *_, path=path: called.add(path)) for path, each in modules.items()]
    try:
        with eval_mode(backbone), torch.random.fork_rng():
            backbone.probe()
    finally:
        for handle in handles:
            handle.remove()
    return [path for path in modules if path in called]
