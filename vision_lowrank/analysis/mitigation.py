"""Scaling the intruders of a trained model down, to get back what the model could do before.

Paper: arXiv 2410.21228; the mathematics is in :mod:`.intruders`. ΔW(λ) of every layer goes, as the caller likes,

* into a new LoRA adapter of the model (:func:`reduce_intruders`), the old one can be activated again. ``rank="exact"``
  is ours: A, B stacked with the intruders, rank r + |I|, scale 1; layers without intruders are copied. ``rank="same"``
  calls PEFT's ``reduce_intruder_dimension``, plain LoRA on linears only, which cuts ΔW(λ) to the old rank r: at small
  λ much is lost (59 % of ΔW(0) in a toy layer of r = 4 with 5 intruders);
* into the base weights of a copy without adapters (:func:`merge_reduced`), for every method;
* or into the model for as long as a ``with`` block lasts (:func:`with_changes`), which :func:`sweep` uses to evaluate a
  whole range of λ and of a control.

`keep` is λ, the fraction that is kept: PEFT's argument ``mitigation_lambda`` has this meaning too, whatever its
docstring says. Removing intruders removes part of the task: choose λ on validation data of both, and look at the
control "shrink" before believing that the intruders were the cause.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

import peft
import torch
from peft import PeftModel
from peft.tuners.lora import Linear as PeftLoraLinear
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..adapters.base import Factors
from ..adapters.lora import OffsetLoraConfig
from ..adapters.tuner import AdapterLayer, AdapterTuner, layer_factors, tuner_layers
from ..attention.split import fuse_attention
from ..backbones.adapted import without_adapter
from ..backbones.base import Backbone
from ..errors import UserError, near_miss
from ..export.lora import truncate
from ..modes import preserved
from ..optim.weights import restored
from .intruders import Intruders, Side, intruder_factors, intruders, scale_intruders, scale_random, shrink
from .layers import PREFIX, chosen_adapter, layer_pairs

Control: TypeAlias = Literal["none", "shrink", "random"]
CONTROLS = ("none", "shrink", "random")
NEW = "intruder_reduced"
# Relative size below which a singular value of ΔW(λ) is rounding: what "exact" means where there are no factors.
ROUNDING = 1e-6


def reduce_intruders(
    model: PeftModel,
    keep: float = 0.75,
    k: int = 10,
    epsilon: float = 0.5,
    side: Side = "left",
    rank: Literal["exact", "same"] = "exact",
    adapter_name: str | None = None,
    new_name: str = NEW,
) -> None:
    """Add an adapter with ΔW(λ) to the model and activate it; nothing else of the model changes.

    Args:
        model: with PEFT's LoRA or any method of ours; a method without factors gets those of its ΔW(λ) by SVD.
        keep: λ.
        k: leading triplets to look at.
        epsilon: ε.
        side: which vectors are compared; PEFT knows ``left`` only.
        rank: ``exact``, or ``same`` for PEFT's own function.
        adapter_name: None for the active adapter.
        new_name: name of the new one.

    Raises:
        UserError: a method that PEFT cannot mix with a LoRA, parts trained beside ΔW, a name that is taken, or what
            the functions of :mod:`.layers` refuse; the model is left as it was.
    """
    name = chosen_adapter(model, adapter_name)
    if new_name in model.peft_config:
        raise UserError(f"the model already has an adapter '{new_name}': choose another new_name.")
    if rank not in ("exact", "same"):
        raise UserError(f"unknown rank '{rank}'.{near_miss(rank, ('exact', 'same'))} Known: exact, same.")
    _refuse_more(model, name)
    _refuse_merged(model)
    if rank == "same":
        _peft_reduce(model, name, new_name, keep, k, epsilon, side)
    else:
        layers = dict(tuner_layers(model))
        pairs = {}
        for key, _, weight, delta in layer_pairs(model, name):
            found = intruders(weight, delta, k, epsilon, side)
            pairs[key] = _exact(layer_factors(layers[PREFIX + key], name), delta, found, keep)
        _add_lora(model, pairs, name, new_name)
    if hasattr(model, "attachments") and name in model.attachments:
        model.attachments[new_name] = model.attachments[name]
    if not model.training:
        model.eval()  # new modules come in training mode


def changes(
    model: PeftModel,
    keep: float,
    k: int = 10,
    epsilon: float = 0.5,
    side: Side = "left",
    control: Control = "none",
    adapter_name: str | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Compute ΔW(λ) (out, in) float32 of every layer by name, or that of a control.

    Args:
        model: with any adapter that has a ΔW.
        keep: λ.
        k: leading triplets to look at.
        epsilon: ε.
        side: which vectors are compared.
        control: ``shrink``: ΔW at the norm of ΔW(λ); ``random``: as many random ones of the k triplets scaled.
        adapter_name: None for the active adapter.
        seed: of the random control.

    Raises:
        UserError: an unknown control, or what :func:`.layers.layer_pairs` refuses.
    """
    return _scaled(_found(model, adapter_name, k, epsilon, side), keep, control, seed)


def merge_reduced(model: PeftModel, deltas: Mapping[str, Tensor]) -> nn.Module:
    """Merge the given changes into W0 in a copy of the model, with no adapters left and attention fused back.

    Args:
        model: with the adapter that `deltas` belong to.
        deltas: layer name -> (out, in), from :func:`changes`.

    Raises:
        UserError: parts were trained beside ΔW, an adapter is merged, or a name that is no adapted layer.
    """
    _refuse_more(model, chosen_adapter(model, None))
    _refuse_merged(model)
    model = copy.deepcopy(model)
    for base, weight in _changed(model, deltas):
        base.weight.data.copy_(weight)
    plain = model.unload()
    fuse_attention(plain)
    plain.requires_grad_(False)
    if isinstance(plain, Backbone):
        plain.take_identity()
    return plain


@contextmanager
def with_changes(model: PeftModel, deltas: Mapping[str, Tensor]) -> Iterator[None]:
    """Make the model compute with W0 + the given changes and without its adapters; afterwards it is as before, bit for
    bit, and the same of it trains. A classifier's class prompts that were encoded earlier are encoded anew.

    Raises:
        UserError: an adapter is merged, or a name that is no adapted layer.
    """
    _refuse_merged(model)
    changed = _changed(model, deltas)
    weights = [base.weight for base, _ in changed]
    # Written to under no_grad, not through .data: whoever keeps results of the model must be able to notice.
    with preserved(model), without_adapter(model), restored(weights):
        with torch.no_grad():
            for base, weight in changed:
                base.weight.copy_(weight)
        yield


def sweep(
    model: PeftModel,
    evaluate: Callable[[], Mapping[str, float]],
    keeps: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0),
    k: int = 10,
    epsilon: float = 0.5,
    side: Side = "left",
    control: Control = "none",
    adapter_name: str | None = None,
    seed: int = 0,
) -> dict[float, dict[str, float]]:
    """Compute metrics along λ, of the intruders or a control; the model stays as it was. Arguments: :func:`changes`.

    Args:
        model: with any adapter that has a ΔW.
        evaluate: computes metrics of the model as it is when called; an ``ImageClassifier`` around it does.
        keeps: the λ.
        k: leading triplets to look at.
        epsilon: ε.
        side: which vectors are compared.
        control: which change is scaled.
        adapter_name: None for the active adapter.
        seed: of the random control.
    """
    found = _found(model, adapter_name, k, epsilon, side)
    results = {}
    for keep in keeps:
        with with_changes(model, _scaled(found, keep, control, seed)):
            results[keep] = dict(evaluate())
    return results


def _found(
    model: PeftModel, adapter_name: str | None, k: int, epsilon: float, side: Side
) -> dict[str, tuple[Tensor, Intruders]]:
    """Find ΔW and intruders of every layer."""
    _refuse_more(model, chosen_adapter(model, adapter_name))
    return {
        key: (delta, intruders(weight, delta, k, epsilon, side))
        for key, _, weight, delta in layer_pairs(model, adapter_name)
    }


def _scaled(
    found: Mapping[str, tuple[Tensor, Intruders]], keep: float, control: Control, seed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rules = {
        "none": scale_intruders,
        "shrink": shrink,
        "random": lambda delta, own, keep: scale_random(delta, own, keep, generator),
    }
    if control not in rules:
        raise UserError(f"unknown control '{control}'.{near_miss(control, CONTROLS)} Known: {', '.join(CONTROLS)}.")
    return {key: rules[control](delta, own, keep).float() for key, (delta, own) in found.items()}


def _exact(factors: Factors | None, delta: Tensor, found: Intruders, keep: float) -> Factors:
    """Compute ΔW(λ) as factors: stacked where that fits, else by SVD."""
    if factors is not None and len(factors.A) + found.count <= min(delta.shape):
        A, B, scale = factors
        return intruder_factors(Factors(A.detach(), B.detach(), scale), found, keep)
    return truncate(scale_intruders(delta, found, keep), None, ROUNDING)[0]


def _add_lora(model: PeftModel, pairs: Mapping[str, Factors], name: str, new_name: str) -> None:
    """Add an adapter that holds the pairs, active and as trainable as PEFT makes it."""
    if isinstance(model.base_model, AdapterTuner):
        _add_own(model, pairs, name, new_name)
    elif str(getattr(model.peft_type, "value", model.peft_type)) == "LORA":
        _add_peft(model, pairs, name, new_name)
    else:
        method = getattr(model.peft_type, "value", model.peft_type)
        raise UserError(f"PEFT cannot add a LoRA to a model with {method}: use merge_reduced.")
    model.set_adapter(new_name, inference_mode=bool(model.peft_config[name].inference_mode))


@torch.no_grad()
def _add_peft(model: PeftModel, pairs: Mapping[str, Factors], name: str, new_name: str) -> None:
    old = model.peft_config[name]
    config = peft.LoraConfig(
        r=max(max(len(pair.A) for pair in pairs.values()), 1),
        target_modules=old.target_modules,
        exclude_modules=old.exclude_modules,
        rank_pattern={f"^{re.escape(key)}": len(pair.A) for key, pair in pairs.items()},
        alpha_pattern={f"^{re.escape(key)}": pair.scale * len(pair.A) for key, pair in pairs.items()},
        inference_mode=old.inference_mode,
    )
    model.add_adapter(new_name, config)
    for key, pair in pairs.items():
        layer = model.get_submodule(PREFIX + key)
        for part, factor in ((layer.lora_A[new_name].weight, pair.A), (layer.lora_B[new_name].weight, pair.B)):
            part.copy_(factor.reshape(part.shape))  # a convolution's have four dimensions


@torch.no_grad()
def _add_own(model: PeftModel, pairs: Mapping[str, Factors], name: str, new_name: str) -> None:
    """Add an adapter of ours: one tuner serves all our methods, so any can join; lower ranks are filled with zeros."""
    old = model.peft_config[name]
    r = max(max(len(pair.A) for pair in pairs.values()), 1)
    config = OffsetLoraConfig(
        r=r,
        alpha=float(r),
        scaling="lora",
        target_modules=old.target_modules,
        exclude_modules=old.exclude_modules,
        inference_mode=old.inference_mode,
    )
    model.peft_config[new_name] = config
    try:
        model.base_model.inject_adapter(model.base_model.model, new_name)
    except Exception:
        del model.peft_config[new_name]
        raise
    for key, pair in pairs.items():
        update = model.get_submodule(PREFIX + key).weight_update[new_name]
        update.A.zero_()
        update.A[: len(pair.A)] = pair.A
        update.B[:, : len(pair.A)] = pair.scale * pair.B


def _peft_reduce(model: PeftModel, name: str, new_name: str, keep: float, k: int, epsilon: float, side: Side) -> None:
    """Call PEFT's own function, for what it can do."""
    if side != "left":
        raise UserError(f"PEFT compares left vectors, not {side}: use rank='exact'.")
    for path, layer in tuner_layers(model):
        if name not in layer._get_available_adapters():
            continue
        plain = isinstance(layer, PeftLoraLinear) and not isinstance(layer.get_base_layer(), Conv1D)
        if not plain or layer.lora_variant.get(name):
            raise UserError(f"'{path.removeprefix(PREFIX)}' is no plain LoRA of PEFT: use rank='exact'.")
    next(layer_pairs(model, name))  # refuses starts that changed the frozen weights, which PEFT would change again
    reduce_intruder_dimension(model, name, new_name, k, epsilon, keep, logging_sink=None)


def _changed(model: PeftModel, deltas: Mapping[str, Tensor]) -> list[tuple[nn.Module, Tensor]]:
    """Compute W0 + ΔW of every named layer, in its layout and type, beside its frozen module."""
    layers = {path.removeprefix(PREFIX): layer for path, layer in tuner_layers(model)}
    changed = []
    for key, delta in deltas.items():
        if key not in layers:
            raise UserError(f"'{key}' carries no adapter.{near_miss(key, layers)}")
        base = layers[key].get_base_layer()
        delta = (delta.T if isinstance(base, Conv1D) else delta).reshape(base.weight.shape)
        wide = torch.promote_types(base.weight.dtype, delta.dtype)
        changed.append((base, (base.weight.detach().to(wide) + delta.to(base.weight.device)).to(base.weight.dtype)))
    return changed


def _refuse_more(model: PeftModel, name: str) -> None:
    """Refuse adapters with trained parts that are no ΔW of a matrix of their own."""
    config = model.peft_config[name]
    bases = [layer.get_base_layer() for _, layer in tuner_layers(model) if name in layer._get_available_adapters()]
    weights = [id(base.weight) for base in bases if isinstance(base, nn.Linear | nn.Conv2d | Conv1D)]
    parts = sorted(getattr(config, "modules_to_save", None) or ())
    if getattr(config, "bias", "none") != "none":
        parts.append("biases")
    if any(isinstance(layer, AdapterLayer) and type(layer) is not AdapterLayer for _, layer in tuner_layers(model)):
        parts.append(f"what {config.method} adds")
    if any(isinstance(base, nn.Embedding) for base in bases):
        parts.append("embeddings")
    if len(set(weights)) < len(weights):
        parts.append("layers that share a weight")
    if parts:
        raise UserError(
            f"{', '.join(parts)} trained beside ΔW, and scaling ΔW would lose that: merge the model instead."
        )


def _refuse_merged(model: PeftModel) -> None:
    if any(layer.merged for _, layer in tuner_layers(model)):
        raise UserError("an adapter is merged into the weights: unmerge it first.")
