"""Weighted sums of adapters: PEFT's ``add_weighted_adapter`` for every method of ours whose ΔW has factors.

With ΔW_i = s_i B_i A_i of the adapters, offsets included, and weights w_i of any sign, the new adapter is a plain
factored one, ΔW = B A (:class:`~vision_lowrank.adapters.lora.OffsetLora`), whatever methods were combined::

    cat       A = [A_1; A_2; …],  B = [w_1 s_1 B_1, w_2 s_2 B_2, …]       ΔW = Σ w_i ΔW_i exactly, rank Σ r_i
    svd       the best ΔW of rank `svd_rank` (default: the largest r_i) for Σ w_i ΔW_i
    linear    A = Σ ± sqrt(|w_i s_i|) A_i,  B = Σ sqrt(|w_i s_i|) B_i     equal ranks; exact for one adapter alone

``ties``, ``dare_linear``, ``dare_ties`` and ``magnitude_prune`` (PEFT's own functions) put another sum in the place of
that of ``linear``, and with ``_svd`` of that of ``svd``. Where Σ r_i exceeds a layer's smaller side, ``cat`` keeps ΔW
itself beside an identity: as exact, and no larger than need be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.merge_utils import dare_linear, dare_ties, magnitude_prune, task_arithmetic, ties
from torch import Tensor

from ..errors import UserError, near_miss
from ..registry import registry
from .base import AdapterConfig, Factors, stack

# A sum of tensors with weights, by the name it has in PEFT, and what it takes beside them.
SUMS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "linear": (task_arithmetic, ()),
    "ties": (ties, ("density", "majority_sign_method")),
    "dare_linear": (dare_linear, ("density",)),
    "dare_ties": (dare_ties, ("density", "majority_sign_method")),
    "magnitude_prune": (magnitude_prune, ("density",)),
}
KNOWN = ("cat", "svd", *SUMS, *(f"{name}_svd" for name in SUMS if name != "linear"))


def combine(
    parts: Sequence[Factors], weights: Sequence[float], how: str, rank: int | None, options: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Combine the factors that several adapters have on one layer.

    Args:
        parts: A (r_i, in), B (out, r_i) and the scale of each.
        weights: of each.
        how: one of :data:`KNOWN`.
        rank: of the result, for those that end with ``svd``; the largest r_i if None.
        options: what PEFT's functions take beside tensors and weights, by name.

    Returns:
        A (r, in) and B (out, r) of the sum.

    Raises:
        UserError: ranks that are not equal where they must be.
    """
    scaled = [part._replace(scale=part.scale * weight) for part, weight in zip(parts, weights, strict=True)]
    smallest = min(parts[0].A.shape[1], parts[0].B.shape[0])
    if how == "cat":
        A, B, _ = stack(scaled)
        return (A, B) if len(A) <= smallest else _beside_identity(B @ A)
    add, names = _sum_of(how)
    options = {name: options[name] for name in names}
    if how.endswith("svd"):
        deltas = [part.scale * (part.B @ part.A) for part in parts]
        U, sigma, Vt = torch.linalg.svd(add(deltas, deltas[0].new_tensor(weights), **options), full_matrices=False)
        r = min(rank or max(len(part.A) for part in parts), smallest)
        return Vt[:r], U[:, :r] * sigma[:r]
    if len(ranks := {len(part.A) for part in parts}) > 1:
        raise UserError(f"{how} adds factors of one rank, and here they have {sorted(ranks)}: use cat or svd.")
    roots = parts[0].A.new_tensor([math.sqrt(abs(part.scale)) for part in scaled])
    signs = roots.new_tensor([math.copysign(1, part.scale) for part in scaled])
    A = add([part.A for part in parts], roots * signs, **options)
    return A, add([part.B for part in parts], roots, **options)


@torch.no_grad()
def add_weighted_adapter(
    tuner: Any,
    adapters: list[str],
    weights: list[float],
    adapter_name: str,
    combination_type: str = "svd",
    svd_rank: int | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
) -> None:
    """Add the weighted sum of adapters as one more, which is neither active nor trained: a method of PEFT's tuners.

    Args:
        tuner: what holds the adapters.
        adapters: their names.
        weights: of each, of any sign.
        adapter_name: of the new one.
        combination_type: one of :data:`KNOWN`.
        svd_rank: rank of the new one where `combination_type` ends with ``svd``; the largest of theirs if None.
        density: share of values that is kept, for ``ties``, ``dare_…`` and ``magnitude_prune``.
        majority_sign_method: of ``ties`` and ``dare_ties``: ``total`` or ``frequency``.

    Raises:
        UserError: it cannot be made; the model is left as it was.
    """
    check_combinable(tuner.peft_config, adapters, weights, adapter_name)
    how = check_type(combination_type, density)
    how = "linear" if len(adapters) == 1 and how == "cat" else how  # PEFT's way: the same rank, and as exact
    given = {"density": density, "majority_sign_method": majority_sign_method}
    layers = {name: module for name, module in tuner.model.named_modules() if isinstance(module, tuner.tuner_layer_cls)}
    pairs = {}
    for name, layer in layers.items():
        parts = {adapter: factors_of(name, layer, adapter) for adapter in adapters if adapter in layer.weight_update}
        if parts:
            own = [weight for adapter, weight in zip(adapters, weights, strict=True) if adapter in parts]
            pairs[name] = combine(list(parts.values()), own, how, svd_rank, given)
    registry.get("adapter", "lora").load()  # makes the plain one known to PEFT
    tuner.peft_config[adapter_name] = config_of_sum(PEFT_TYPE_TO_CONFIG_MAPPING["OFFSET_LORA"], pairs)
    tuner.inject_adapter(tuner.model, adapter_name)
    for name, (A, B) in pairs.items():
        update = tuner.model.get_submodule(name).weight_update[adapter_name]
        update.A.copy_(A)
        update.B.copy_(B)


def check_type(how: str, density: float | None) -> str:
    """Return a `combination_type` that is known and has what it needs.

    Raises:
        UserError: it is not, or has not.
    """
    if how not in KNOWN:
        raise UserError(f"unknown combination_type '{how}'.{near_miss(how, KNOWN)} Known: {', '.join(KNOWN)}.")
    if density is None and "density" in _sum_of(how)[1]:
        raise UserError(f"{how} keeps a share of the values: add density, such as density=0.5.")
    return how


def factors_of(name: str, layer: Any, adapter: str) -> Factors:
    """Return the factors of an adapter on a layer.

    Raises:
        UserError: it has none.
    """
    factors = layer.weight_update[adapter].factors()
    if factors is None:
        kind = type(layer.weight_update[adapter]).__name__
        raise UserError(f"'{name}' has a {kind}, which has no factors to add up: keep its adapters apart.")
    return factors


def check_combinable(configs: Mapping[str, Any], adapters: Sequence[str], weights: Sequence[float], name: str) -> None:
    """Refuse adapters that cannot become the new one, called `name`.

    Raises:
        UserError: an unknown adapter, one twice, another number of weights, a name that is taken, or adapters that
            trained more than their updates.
    """
    unknown = [adapter for adapter in adapters if adapter not in configs]
    if unknown or not adapters:
        what = f"no adapter '{unknown[0]}'.{near_miss(unknown[0], configs)}" if unknown else "nothing to add up."
        raise UserError(f"add_weighted_adapter: there is {what} Known: {', '.join(configs)}.")
    if len(set(adapters)) < len(adapters) or len(weights) != len(adapters):
        raise UserError(f"{len(weights)} weights for {len(set(adapters))} different adapters: give one for each.")
    if name in configs:
        raise UserError(f"the model already has an adapter '{name}': choose another adapter_name.")
    for adapter in adapters:
        config = configs[adapter]
        if config.modules_to_save or config.bias != "none":
            raise UserError(f"adapter '{adapter}' trains biases or whole modules too, which have no sum: merge it.")


def config_of_sum(config: type[AdapterConfig], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> AdapterConfig:
    """Return the config of a plain factored adapter with the ranks of `pairs`, by layer name, and the scale 1."""
    ranks = {f"^{re.escape(name)}": len(A) for name, (A, _) in pairs.items()}
    r = max(ranks.values())
    return config(
        r=r,
        alpha=float(r),
        scaling="lora",
        rank_pattern={name: rank for name, rank in ranks.items() if rank != r},
        alpha_pattern={name: float(rank) for name, rank in ranks.items() if rank != r},
        target_modules="|".join(re.escape(name) for name in pairs),
        inference_mode=True,
    )


def _sum_of(how: str) -> tuple[Callable[..., Tensor], tuple[str, ...]]:
    return SUMS.get(how.removesuffix("_svd"), SUMS["linear"])


def _beside_identity(delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return ΔW (out, in) as A and B of its smaller side."""
    out_features, in_features = delta.shape
    identity = torch.eye(min(delta.shape), device=delta.device, dtype=delta.dtype)
    return (delta, identity) if out_features <= in_features else (identity, delta)
