"""Gates: one number per unit, a block or a module, that multiplies what adapters add there.

With logits a (n,), weights w = relax(a) (n,), and unit u of the layer W (out, in) with x (..., in)::

    y = x Wᵀ + b + w_u^p · s (drop(x) Aᵀ) Bᵀ        A (r, in), B (out, r)

The relaxations work on groups of units, all units of a tower or all modules of a block, of k units each::

    softmax:  w = k · softmax(a)      starts at 1, sums to k
    sigmoid:  w = c · σ(a)            c = 2 starts at 1, c = 1 lies in [0, 1]

(softmax over blocks: Flexora, arXiv 2408.10774; either, over modules: DiffoRA, arXiv 2502.08905). p = 1 multiplies the
branch once; p = 3 is the scaling of Flexora's reference code, which multiplies the input of dropout, A and B each.

The logits are a buffer: they are in every checkpoint, and the optimiser of the adapters never sees them. Whoever wants
their gradient lets them require one for the time of a pass; in all other passes w is a constant.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from itertools import groupby, pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..adapters.tuner import tuner_layers
from ..backbones.adapted import backbone_of
from ..backbones.base import Backbone
from ..errors import UserError
from ..kernels.linear import fused_linear
from ..trained import TrainedPart

Relaxation = Callable[[Tensor], Tensor]


class Unit(NamedTuple):
    """What one gate stands for.

    Attributes:
        name: path of the block or of the module.
        tower: name of the tower.
        block: path of the block.
        layers: paths of the adapted modules, inside the base model.
    """

    name: str
    tower: str
    block: str
    layers: tuple[str, ...]


def find_units(model: PeftModel, by: Literal["block", "module"]) -> list[Unit]:
    """Find the units of an adapted backbone: tower by tower, block by block, modules in the order of the model.

    Raises:
        UserError: the model holds no backbone with known blocks, or an adapted module lies outside of all blocks.
    """
    backbone = backbone_of(model)
    if not isinstance(backbone, Backbone) or not backbone.towers:
        kind = type(backbone).__name__
        raise UserError(f"selection: {kind} has no known blocks: use a backbone whose towers load_backbone knows.")
    left = [name for name, _ in tuner_layers(backbone)]
    units = []
    for tower in backbone.towers.values():
        for block in tower.blocks:
            inside = [name for name in left if name.startswith(f"{block}.")]  # the dot keeps block 1 apart from 11
            left = [name for name in left if name not in inside]
            if by == "module":
                units += [Unit(name, tower.name, block, (name,)) for name in inside]
            elif inside:
                units.append(Unit(block, tower.name, block, tuple(inside)))
    if left:
        raise UserError(f"selection: '{left[0]}' is adapted but lies in no block: adapt modules of blocks alone.")
    if not units:
        raise UserError("selection: the model has no adapted module to choose from; give an `adapter`.")
    return units


def softmax_weights(logits: Tensor) -> Tensor:
    """Turn (k,) logits of one group into (k,) weights k · softmax(a), that sum to k."""
    return len(logits) * logits.softmax(0)


def sigmoid_weights(logits: Tensor, scale: float = 1.0) -> Tensor:
    """Compute scale · σ(a): (k,) -> (k,)."""
    return scale * logits.sigmoid()


class Gates(TrainedPart):
    """Gates on the adapted layers of `model`, in force until :meth:`remove`.

    Args:
        model: an adapted model, or any module with adapted layers at the paths that `units` name.
        units: what the gates stand for.
        relax: from the logits of one group to its weights.
        groups: one key per unit: neighbours of equal key form a group; None for one group of all.
        power: p.

    Attributes:
        logits: (n,), float32 or wider, zero at the start.
        units: as given.

    Raises:
        UserError: there are no units.
    """

    checkpoint_whole: ClassVar[bool] = True

    logits: Tensor

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[Unit],
        relax: Relaxation = softmax_weights,
        groups: Sequence[Hashable] | None = None,
        power: int = 1,
    ) -> None:
        super().__init__()
        if not units:
            raise UserError("selection: there is no adapted module to choose from; give an `adapter`.")
        base = backbone_of(model)
        self.units, self.relax, self.power = tuple(units), relax, power
        self._layers = [[base.get_submodule(path) for path in unit.layers] for unit in units]
        sizes = [len(list(run)) for _, run in groupby(groups or [0] * len(units))]
        starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        self._groups = [slice(start, stop) for start, stop in pairwise(starts)]
        self._group_of = [group for group in self._groups for _ in range(group.stop - group.start)]
        like = next(p for p in self._layers[0][0].parameters() if p.requires_grad)
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.register_buffer("logits", torch.zeros(len(units), dtype=dtype, device=like.device))
        self.install()

    def weights(self) -> Tensor:
        """Compute w (n,), without the power."""
        return torch.cat([self.relax(self.logits[group]) for group in self._groups])

    def multiplier(self, index: int) -> Tensor:
        """Compute what multiplies the branch of unit `index`: w^p, a scalar."""
        group = self._group_of[index]
        return self.relax(self.logits[group])[index - group.start] ** self.power

    def install(self) -> None:
        """Let the gates act; twice is once, and gates that acted on a layer before no longer do."""
        for index, layers in enumerate(self._layers):
            for layer in layers:
                # A forward of its own takes the layer out of what q, k and v share, where no gate would be seen.
                layer.forward = functools.partial(_gated, layer, self, index)

    def remove(self) -> None:
        """Let the layers compute as without gates; the logits stay."""
        for layers in self._layers:
            for layer in layers:
                own = layer.__dict__.get("forward")
                if isinstance(own, functools.partial) and own.args[1] is self:
                    del layer.forward

    def facts(self) -> dict[str, float]:
        """Report the weight of each unit: unit -> weight."""
        return dict(zip((unit.name for unit in self.units), self.weights().tolist(), strict=True))


def _gated(layer: BaseTunerLayer, gates: Gates, index: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run the forward of a gated layer: (..., in) -> (..., out)."""
    plain = functools.partial(type(layer).forward, layer)
    if layer.disable_adapters:
        return plain(x, *args, **kwargs)
    if layer.merged:
        raise UserError(f"'{gates.units[index].name}' is merged while a gate acts on it: call gates.remove() first.")
    weight = gates.multiplier(index)
    branch = layer.branch() if hasattr(layer, "branch") and not args and not kwargs else None
    if branch is None:
        base = layer.base_layer(x, *args, **kwargs)
        return base + weight.to(base.dtype) * (plain(x, *args, **kwargs) - base)
    offset = branch.offset and (branch.offset[0], branch.offset[1] * weight.to(branch.offset[1].dtype))
    return fused_linear(x, *branch._replace(B=branch.B * weight.to(branch.B.dtype), offset=offset))
