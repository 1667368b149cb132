"""Which tensors a gradient rule works on: those of adapters, never a head's; and pairs whose product is ΔW.

Rules for which there are none are refused here too, before a run starts and once its model stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from peft.tuners.lora import Conv2d as PeftLoraConv2d
from peft.tuners.lora import Linear as PeftLoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..adapters.base import WeightUpdate
from ..adapters.three_factor import ThreeFactor
from ..adapters.tuner import AdapterLayer, tuner_layers
from ..config.schema import RunConfig
from ..errors import UserError


class Pair(NamedTuple):
    """ΔW = scale · B A of one layer, B and A trained parameters; or scale · B R A, R alone trained.

    Attributes:
        name: path of the layer.
        A: (r, in); of a convolution (r, in, h, w).
        B: (out, r); of a convolution (out, r, 1, 1).
        scale: s.
        base: the frozen linear or convolution, W (out, in) or (out, in, h, w).
        core: R (r, r) between a frozen A and a frozen B; None where there is none.
    """

    name: str
    A: Tensor
    B: Tensor
    scale: float
    base: nn.Module
    core: Tensor | None = None

    @property
    def matrices(self) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r), those of a convolution with in · h · w for in: the same product."""
        return self.A.flatten(1), self.B.flatten(1)


def no_adapter(rule: str = "") -> UserError:
    """Build the error to raise where the rule of this name has nothing to work on; the name may be left out."""
    name = f"rule {rule}" if rule else "rule"
    return UserError(f"{name}: it works on adapters, and no adapter trains here: set `adapter`, or leave the rule out.")


def require_adapter(rule: str, config: RunConfig) -> None:
    """Refuse a run without adapter.

    Raises:
        UserError: `config` has none.
    """
    if config.adapter is None:
        raise no_adapter(rule)


def adapter_tensors(model: nn.Module) -> list[Tensor]:
    """List the parameters of adapters that require a gradient, each once, in order.

    Raises:
        UserError: there are none.
    """
    found: dict[int, Tensor] = {}
    for _, layer in tuner_layers(model):
        for name in layer.adapter_layer_names:
            container = getattr(layer, name)
            tensors = container.parameters() if isinstance(container, nn.Module) else ()
            found |= {id(tensor): tensor for tensor in tensors if tensor.requires_grad}
    if not found:
        raise no_adapter()
    return list(found.values())


def pairs(model: nn.Module, *, wider: bool = False) -> list[Pair]:
    """Collect the pair of every adapted layer that has one trained pair and nothing else.

    Args:
        model: where to look.
        wider: take three kinds of layers more: those whose B trains alone beside a frozen A (LoRA-FA), those whose R
            trains alone between a frozen A and B (LoRA-XS), and PEFT's LoRA on two-dimensional convolutions.

    Raises:
        UserError: a layer's ΔW is something else; the message names it.
    """
    found = []
    for name, layer in tuner_layers(model):
        own = list(_pairs(name, layer, wider))
        trained = {id(p) for p in nn.Module.parameters(layer) if p.requires_grad}  # type: ignore[arg-type]
        if len(own) != 1 or trained not in _trainable(own[0], wider):
            raise UserError(f"rule: '{name}' does not train one pair B A alone: use adapter.type=lora.")
        found += own
    if not found:
        raise no_adapter()
    return found


def _trainable(pair: Pair, wider: bool) -> list[set[int]]:
    """List the sets of tensors of which one must be what trains in the layer."""
    if pair.core is not None:
        return [{id(pair.core)}]
    return [{id(pair.A), id(pair.B)}, *([{id(pair.B)}] if wider else [])]


def _pairs(name: str, layer: BaseTunerLayer, wider: bool) -> Iterator[Pair]:
    # With groups PEFT's B sees a part of A's outputs only, and ΔW is no B A.
    plain = isinstance(layer, PeftLoraLinear)
    plain |= wider and isinstance(layer, PeftLoraConv2d) and layer.base_layer.groups == 1
    for adapter in layer.active_adapters:
        if plain:
            if adapter in layer.lora_A and adapter not in layer.lora_variant:
                A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                yield Pair(name, A, B, layer.scaling[adapter], layer.base_layer)
        elif isinstance(layer, AdapterLayer) and adapter in layer.weight_update:
            update: WeightUpdate = layer.weight_update[adapter]
            factors = update.own_factors()
            if wider and isinstance(update, ThreeFactor) and isinstance(update.core, nn.Parameter):
                yield Pair(name, update.A, update.B, update.scale, layer.base_layer, update.core)
            elif factors is not None and all(isinstance(each, nn.Parameter) for each in factors[:2]):
                yield Pair(name, factors.A, factors.B, factors.scale, layer.base_layer)
