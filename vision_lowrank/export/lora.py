"""``export_lora``: any adapter as a plain LoRA file, exact where mathematically possible, else with its error.

A ladder, for each layer the first step that holds:

1. A method with factors ΔW = s · B A is exported as it is: A (k, in) and B (out, k) unchanged.
2. A method that carries an offset has the stacked pair ΔW = s · [B, -B_0] [A; A_0] of rank up to 2r, unchanged too.
3. For any other method that can be merged, ΔW = merge(W) - W in float64 is cut to rank k by its SVD, ΔW ≈ U_k S_k V_kᵀ
   with A = V_kᵀ and B = U_k S_k; the relative error sqrt(Σ_{i>k} σ_i² / Σ σ_i²) of every layer is reported.

A layer whose rank was pruned to 0 is left out. Files are for the library's own model after its attention was split (or
as it comes, with ``fuse_qkv``), not for our wrapper: module paths of a backbone lose their leading ``model.``. What the
files hold is in :mod:`vision_lowrank.export.formats`.
"""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..adapters.base import Factors
from ..adapters.peft_method import changes_base
from ..adapters.tuner import AdapterLayer, layer_factors, tuner_layers
from ..backbones.adapted import adapted, backbone_of, plain_path, unwrapped
from ..backbones.base import Backbone
from ..errors import UserError
from .formats import writer
from .fused import Split, fuse_pairs, fused_name

# Largest relative error of a layer where neither rank nor tolerance is given.
TOLERANCE = 1e-2


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the folder or file.
        ranks: layer name in the file -> rank; 0 for a layer that was pruned away and left out.
        errors: layer name -> relative Frobenius error of ΔW; 0 where the factors were copied. For a fused ``qkv`` the
            largest of its parts, which bounds it.
    """

    path: Path
    ranks: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether every layer's factors were copied."""
        return not any(self.errors.values())

    @property
    def worst(self) -> float:
        """The largest relative error."""
        return max(self.errors.values())

    def __str__(self) -> str:
        kind = "exact" if self.exact else f"relative error up to {self.worst:.2g}"
        return f"{len(self.ranks)} layers, rank up to {max(self.ranks.values())}, {kind}: {self.path}"


def export_lora(
    model: PeftModel,
    out: str | os.PathLike,
    format: str = "peft",
    rank: int | None = None,
    tolerance: float | None = None,
    adapter_name: str | None = None,
    component: str = "unet",
    fuse_qkv: bool = False,
) -> ExportReport:
    """Write one adapter as a plain LoRA that loads without this package.

    Args:
        model: a model with adapters, from ``attach``, ``load`` or ``peft.get_peft_model``.
        out: a folder; for ``diffusers`` and ``kohya`` also the name of a ``.safetensors`` file.
        format: ``peft``, ``diffusers`` or ``kohya``.
        rank: rank of the layers that have no exact form; None for the smallest that stays within `tolerance`.
        tolerance: largest relative error of a layer; None for 0.01 without `rank`, and for any with it.
        adapter_name: None for the active adapter.
        component: for ``diffusers`` and ``kohya``, what the model is in a pipeline: ``unet``, ``transformer``,
            ``text_encoder`` or ``text_encoder_2``.
        fuse_qkv: write q, k and v as one layer, for a model of timm, or one of Qwen, whose attention is not split.

    Raises:
        UserError: unknown format or component, a method whose ΔW cannot be written as a LoRA on the same base, or a
            `rank` that misses the `tolerance`; nothing has been written then.
    """
    write, model = writer(format, component), unwrapped(model)
    if not adapted(model):
        raise UserError(f"export_lora needs a model with adapters, not a {type(model).__name__}.")
    name = model.active_adapters[0] if adapter_name is None else adapter_name
    _refuse_more(model, name, adapter_name is None)
    prefix = "base_model.model." + ("model." if isinstance(backbone_of(model), Backbone) else "")
    modules = {plain_path(path).removeprefix(prefix): module for path, module in model.named_modules()}
    pairs, errors = _factors_of_all(model, prefix, name, rank, tolerance)
    if fuse_qkv:
        attentions = {path: module for path, module in modules.items() if isinstance(module, Split)}
        pairs = fuse_pairs(pairs, attentions)
        errors = {fused: _worst(errors, attentions, fused) for fused in pairs}
        modules = {fused_name(path, attentions): module for path, module in modules.items()}
    kept = {key: pair for key, pair in pairs.items() if len(pair.A)}
    if not kept:
        raise UserError(f"every layer of the adapter '{name}' is pruned to rank 0: there is nothing to export.")
    path = write(kept, list(modules), Path(out), component)
    return ExportReport(path, {key: len(pair.A) for key, pair in pairs.items()}, errors)


def _factors_of_all(
    model: PeftModel, prefix: str, name: str, rank: int | None, tolerance: float | None
) -> tuple[dict[str, Factors], dict[str, float]]:
    """Compute factors and relative error of each layer that carries the adapter, by its path in the library's model."""
    pairs, errors = {}, {}
    for path, layer in tuner_layers(model):
        if name in layer._get_available_adapters():
            key = plain_path(path).removeprefix(prefix)
            if isinstance(layer, AdapterLayer):
                layer.check_mergeable(key)
            pairs[key], errors[key] = _factors(layer, name, rank, TOLERANCE if tolerance is None else tolerance)
            if not all(tensor.isfinite().all() for tensor in pairs[key][:2]):
                raise UserError(
                    f"'{key}' has values that are not finite: its training diverged; there is nothing to use."
                )
    if not pairs:
        raise UserError(f"the model has no adapter '{name}' to export.")
    if rank is not None and tolerance is not None:
        _refuse_above(tolerance, errors, rank)
    return pairs, errors


def _refuse_above(tolerance: float, errors: dict[str, float], rank: int) -> None:
    above = sorted((key for key in errors if errors[key] > tolerance), key=lambda key: -errors[key])
    if above:
        listed = ", ".join(f"{key} {errors[key]:.2g}" for key in above)
        raise UserError(
            f"rank {rank} loses more than the tolerance {tolerance:g} in {len(above)} of {len(errors)} layers "
            f"({listed}): raise the rank or the tolerance, or export merged weights."
        )


def _worst(errors: dict[str, float], attentions: dict[str, Split], fused: str) -> float:
    return max(error for key, error in errors.items() if fused_name(key, attentions) == fused)


def _factors(layer: nn.Module, name: str, rank: int | None, tolerance: float) -> tuple[Factors, float]:
    """Compute factors of one layer and their relative error."""
    own = layer_factors(layer, name)
    return (own, 0.0) if own is not None else truncate(effective_delta(layer, name), rank, tolerance)


@torch.no_grad()
def effective_delta(layer: nn.Module, name: str) -> Tensor:
    """Compute ΔW (out, in) in float64 of any linear layer whose method can be merged: merge(W) - W.

    Raises:
        UserError: it cannot be merged, or merging changes more than a linear's weight.
    """
    layer = copy.deepcopy(layer).double()
    base = layer.get_base_layer()
    if not isinstance(base, nn.Linear | Conv1D):
        raise UserError(f"a {type(base).__name__} cannot be exported as LoRA: only linears can.")
    if layer.merged:
        layer.unmerge()
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    try:
        layer.merge(adapter_names=[name])
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"{type(layer).__module__} cannot be merged, so it has no LoRA form: {error}") from error
    after = layer.get_base_layer()
    if "bias" in before and not torch.equal(after.bias, before["bias"]):
        raise UserError("the adapter changes biases, which a plain LoRA does not hold: merge it instead.")
    delta = after.weight - before["weight"]
    return delta.T if isinstance(base, Conv1D) else delta


def truncate(delta: Tensor, rank: int | None, tolerance: float) -> tuple[Factors, float]:
    """Truncate ΔW (out, in) to its best approximation of a rank, or of the smallest rank within a relative error."""
    U, sigma, Vt = torch.linalg.svd(delta, full_matrices=False)
    total = sigma.square().sum()
    # tail[k] = what is lost by keeping k directions
    tail = torch.cat([sigma.square().flip(0).cumsum(0).flip(0), sigma.new_zeros(1)])
    if rank is None:
        rank = max(int((tail > tolerance**2 * total).sum()), 1)
    rank = min(rank, len(sigma))
    error = math.sqrt(float(tail[rank] / total)) if total > 0 else 0.0
    return Factors((Vt[:rank]).float(), (U[:, :rank] * sigma[:rank]).float(), 1.0), error


def _refuse_more(model: PeftModel, name: str, active: bool) -> None:
    """Refuse adapters that are more than what B A on the same base says."""
    config = model.peft_config.get(name)
    if active and len(model.active_adapters) > 1:
        names = ", ".join(model.active_adapters)
        raise UserError(f"several adapters are active ({names}), and a file holds one: give adapter_name, or merge.")
    if getattr(config, "bias", "none") != "none":
        raise UserError(f"bias = '{config.bias}' trained biases, which a plain LoRA does not hold: merge it instead.")
    if saved := getattr(config, "modules_to_save", None):
        raise UserError(
            f"{', '.join(sorted(saved))} trained in full, which a plain LoRA does not hold: merge it instead."
        )
    if culprit := changes_base(config):
        raise UserError(
            f"{culprit} changed the frozen weights when it attached: its B A is not the whole change; merge it instead."
        )
