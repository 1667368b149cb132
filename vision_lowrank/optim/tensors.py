"""Which tensors a gradient rule works on: those of adapters, never a head's; and pairs whose product is ΔW."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from peft.tuners.lora import Linear as PeftLoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..adapters.base import WeightUpdate
from ..adapters.tuner import AdapterLayer, tuner_layers
from ..errors import UserError


class Pair(NamedTuple):
    """ΔW = scale · B A of one layer, B and A trained parameters.

    Attributes:
        name: path of the layer.
        A: (r, in).
        B: (out, r).
        scale: s.
        base: the frozen linear, W (out, in).
    """

    name: str
    A: nn.Parameter
    B: nn.Parameter
    scale: float
    base: nn.Module


def adapter_tensors(model: nn.Module) -> list[Tensor]:
    """Parameters of adapters that require a gradient, each once, in order.

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
        raise UserError("rule: no adapter trains here; give an `adapter`, or leave the rule out.")
    return list(found.values())


def pairs(model: nn.Module, *, frozen_A: bool = False) -> list[Pair]:
    """The pair of every adapted layer that has one trained pair and nothing else.

    Args:
        model: where to look.
        frozen_A: take layers too whose B trains alone beside a frozen A (LoRA-FA).

    Raises:
        UserError: a layer's ΔW is something else; the message names it.
    """
    found = []
    for name, layer in tuner_layers(model):
        own = list(_pairs(name, layer))
        trained = {id(p) for p in nn.Module.parameters(layer) if p.requires_grad}  # type: ignore[arg-type]
        allowed = [{id(pair.A), id(pair.B)} for pair in own] + [{id(pair.B)} for pair in own if frozen_A]
        if len(own) != 1 or trained not in allowed:
            raise UserError(f"rule: '{name}' does not train one pair B A alone: use adapter.type=lora.")
        found += own
    if not found:
        raise UserError("rule: no adapter trains here; give an `adapter`, or leave the rule out.")
    return found


def _pairs(name: str, layer: BaseTunerLayer) -> Iterator[Pair]:
    for adapter in layer.active_adapters:
        if isinstance(layer, PeftLoraLinear):
            if adapter in layer.lora_A and adapter not in layer.lora_variant:
                A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                yield Pair(name, A, B, layer.scaling[adapter], layer.base_layer)
        elif isinstance(layer, AdapterLayer) and adapter in layer.weight_update:
            update: WeightUpdate = layer.weight_update[adapter]
            factors = update.own_factors()
            if factors is not None and all(isinstance(each, nn.Parameter) for each in factors[:2]):
                yield Pair(name, factors.A, factors.B, factors.scale, layer.base_layer)
