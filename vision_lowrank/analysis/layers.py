"""The pairs (W0, ΔW) of a model, layer by layer, and what there is to say about each.

W0 (out, in) is the weight that was frozen, ΔW what the adapter makes of it, both in float64 and one layer at a time:
ours through ``get_delta_weight``, every other PEFT method as merge(W) - W. Convolutions are flattened to
(out, in · kh · kw). q, k and v are apart where attention was split; :func:`fused_pairs` stacks them as (3D, D), which
mixes the three spectra. Weights that several layers share count once. Quantised layers and methods whose change
depends on the input are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import Conv2d as LoraConv2d
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..adapters.peft_method import changes_base
from ..adapters.tuner import AdapterLayer, tuner_layers
from ..attention.split import SplitAttention
from ..backbones.adapted import adapted, backbone_of
from ..backbones.base import Backbone
from ..errors import UserError
from ..export.fused import PARTS
from ..export.lora import effective_delta
from .intruders import Intruders, Side, find_intruders, similarities
from .spectra import Spectra, decompose, effective_rank, relative_norm

PREFIX = "base_model.model."


class LayerPair(NamedTuple):
    """One adapted matrix.

    Attributes:
        name: path inside the model that PEFT wraps.
        kind: tower and logical name, such as ``vision q``; the last part of the path where there are none.
        weight: W0 (out, in) float64.
        delta: ΔW (out, in) float64.
    """

    name: str
    kind: str
    weight: Tensor
    delta: Tensor


@dataclass(frozen=True)
class LayerReport:
    """What one layer shows.

    Attributes:
        name: path of the layer.
        kind: as in :class:`LayerPair`.
        shape: (out, in).
        relative_norm: ‖ΔW‖_F / ‖W0‖_F.
        effective_rank: of ΔW.
        spectra: SVDs of W0 and W0 + ΔW.
        similarities: c_j (n,) of all vectors.
        found: the intruders.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    relative_norm: float
    effective_rank: float
    spectra: Spectra
    similarities: Tensor
    found: Intruders


def analyse(
    pairs: Iterator[LayerPair], k: int = 10, epsilon: float = 0.5, side: Side = "left"
) -> Iterator[LayerReport]:
    """Yield one report per pair, each computed when it is asked for, with one SVD of W0 and one of W0 + ΔW."""
    for name, kind, weight, delta in pairs:
        spectra = decompose(weight, delta)
        yield LayerReport(
            name,
            kind,
            (weight.shape[0], weight.shape[1]),
            relative_norm(weight, delta),
            effective_rank(delta),
            spectra,
            similarities(spectra, side),
            find_intruders(spectra, k, epsilon, side),
        )


def layer_pairs(
    model: PeftModel, adapter_name: str | None = None, originals: Mapping[str, Tensor] | None = None
) -> Iterator[LayerPair]:
    """Yield the pairs of all layers that carry an adapter.

    Args:
        model: from ``attach``, ``load`` or ``peft.get_peft_model``.
        adapter_name: None for the active adapter.
        originals: layer name -> W0 (out, in), for starts that changed the frozen weight (PEFT's PiSSA and others).

    Raises:
        UserError: no adapter there, several active ones, a changed frozen weight without `originals`, or a layer that
            has no ΔW; the message names it.
    """
    name = chosen_adapter(model, adapter_name)
    if originals is None:
        _refuse_altered(model, name)
    kinds, seen = layer_kinds(model), set[int]()
    for path, layer in tuner_layers(model):
        key, base = path.removeprefix(PREFIX), layer.get_base_layer()
        weight = getattr(base, "weight", base)
        embeds = isinstance(base, nn.Embedding)  # never counted
        if embeds or name not in layer._get_available_adapters() or id(weight) in seen:
            continue
        seen.add(id(weight))
        W0, delta = _pair(key, layer, name)
        if originals is not None:
            if key not in originals:
                raise UserError(f"originals have no weight '{key}': give W0 of every adapted layer.")
            original = originals[key].flatten(1).to(delta)
            W0, delta = original, W0 + delta - original
        yield LayerPair(key, kinds.get(key, key.rpartition(".")[2]), W0, delta)


def fused_pairs(model: PeftModel, adapter_name: str | None = None) -> Iterator[LayerPair]:
    """Yield q, k and v of every adapted split attention as one pair (3D, E), a part without adapter with ΔW = 0."""
    name = chosen_adapter(model, adapter_name)
    _refuse_altered(model, name)
    for path, attention in model.named_modules():
        layers = [getattr(attention, part) for part in PARTS] if isinstance(attention, SplitAttention) else []
        adapted = [isinstance(layer, BaseTunerLayer) and name in layer._get_available_adapters() for layer in layers]
        if not any(adapted):
            continue
        key = path.removeprefix(PREFIX)
        parts = [
            _pair(f"{key}.{part}", layer, name) if has else _untouched(layer)
            for part, layer, has in zip(PARTS, layers, adapted, strict=True)
        ]
        weights, deltas = zip(*parts, strict=True)
        yield LayerPair(f"{key}.qkv", "qkv", torch.cat(weights), torch.cat(deltas))


def paired_weights(base: nn.Module, tuned: nn.Module) -> Iterator[LayerPair]:
    """Yield the pairs of all linears of two models of one architecture, for full fine-tuning and merged models.

    Embeddings are not counted. Attention should be split in both, or in neither.

    Raises:
        UserError: `tuned` lacks a linear of `base`, or has it in another shape.
    """
    others = dict(tuned.named_modules())
    seen = set[int]()
    for path, linear in base.named_modules():
        if not isinstance(linear, nn.Linear) or id(linear.weight) in seen:
            continue
        seen.add(id(linear.weight))
        other = others.get(path)
        if not isinstance(other, nn.Linear) or other.weight.shape != linear.weight.shape:
            raise UserError(
                f"the tuned model has no linear '{path}' of that shape: compare models of one architecture."
            )
        W0 = linear.weight.detach().double()
        yield LayerPair(path, path.rpartition(".")[2], W0, other.weight.detach().double().to(W0.device) - W0)


def chosen_adapter(model: PeftModel, adapter_name: str | None) -> str:
    """Find the name of the adapter that is meant.

    Raises:
        UserError: `model` has none, none of that name, or several are active.
    """
    if not adapted(model):
        raise UserError(f"a {type(model).__name__} has no adapter inside: give what attach or load returned.")
    if adapter_name is None and len(model.active_adapters) != 1:
        raise UserError(f"several adapters are active ({', '.join(model.active_adapters)}): give adapter_name.")
    name = model.active_adapters[0] if adapter_name is None else adapter_name
    if name not in model.peft_config:
        raise UserError(f"the model has no adapter '{name}'; it has {', '.join(model.peft_config)}.")
    return name


def layer_kinds(model: PeftModel) -> dict[str, str]:
    """Map layer name -> tower and logical name, for backbones with known towers."""
    base = backbone_of(model)
    towers = base.towers.values() if isinstance(base, Backbone) else ()
    return {
        f"{block}.{path}": f"{tower.name} {logical}"
        for tower in towers
        for block in tower.blocks
        for logical, path in tower.modules.items()
    }


@torch.no_grad()
def _pair(key: str, layer: BaseTunerLayer, name: str) -> tuple[Tensor, Tensor]:
    """Compute W0 and ΔW (out, in) of one layer, float64; the layer stays as it is, merged or not."""
    weight = getattr(layer.get_base_layer(), "weight", None)
    if isinstance(weight, Tensor) and not weight.is_floating_point():
        raise UserError(f"'{key}' is quantised: dequantise the base before the analysis.")
    if isinstance(layer, AdapterLayer):
        layer.check_mergeable(key)
        delta = layer.oriented(layer.get_delta_weight(name)).double()
    elif isinstance(layer, LoraConv2d) and not layer.lora_variant.get(name):
        delta = layer.get_delta_weight(name).flatten(1).double()
    else:
        try:
            delta = effective_delta(layer, name)
        except UserError as error:
            raise UserError(f"'{key}' has no ΔW to analyse: {error}") from error
    if layer.merged:
        layer = copy.deepcopy(layer)
        layer.unmerge()
    weight = layer.get_base_layer().weight.detach().flatten(1).double()
    return (weight.T if isinstance(layer.get_base_layer(), Conv1D) else weight), delta


def _untouched(layer: nn.Module) -> tuple[Tensor, Tensor]:
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    weight = base.weight.detach().double()
    return weight, torch.zeros_like(weight)


def _refuse_altered(model: PeftModel, name: str) -> None:
    if culprit := changes_base(model.peft_config[name]):
        raise UserError(f"{culprit} changed the frozen weights when it attached: give the untouched ones as originals.")
