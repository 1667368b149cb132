"""``export_lora``: any adapter as a plain LoRA file, exact where mathematically possible, else with its error.

A method with factors ΔW = s · B A (:func:`vision_lowrank.adapters.tuner.layer_factors`) is exported as it is: A (r, in)
and B (out, r) unchanged, ``lora_alpha = s · r``, so that PEFT's scale alpha / r is s. For any other method that can be
merged, ΔW = merge(W) - W in float64 is cut to rank k by its SVD, ΔW ≈ U_k S_k V_kᵀ with A = V_kᵀ and B = U_k S_k; the
relative error per layer, sqrt(Σ_{i>k} σ_i² / Σ σ_i²), is reported.

Files are for the library's own model after its attention was split, not for our wrapper: module paths of a backbone
lose their leading ``model.``.
"""

from __future__ import annotations

import copy
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import peft
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..adapters.base import Factors
from ..adapters.folder import replaced
from ..adapters.store import CARD, TENSORS, write_config
from ..adapters.tuner import layer_factors, tuner_layers
from ..backbones.base import Backbone
from ..errors import UserError, near_miss

FORMATS = ("peft",)
# Starting points and variants of PEFT's LoRA that change the frozen weight: B A alone is not their ΔW.
ALTERING = ("pissa", "olora", "corda", "lora_ga", "loftq")


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        folder: where.
        ranks: layer name -> rank.
        errors: layer name -> relative Frobenius error of ΔW; 0 where the factors were copied.
    """

    folder: Path
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
        return f"{len(self.ranks)} layers, rank up to {max(self.ranks.values())}, {kind}: {self.folder}"


def export_lora(
    model: PeftModel,
    folder: str | os.PathLike,
    format: str = "peft",
    rank: int | None = None,
    tolerance: float = 1e-2,
    adapter_name: str | None = None,
) -> ExportReport:
    """Write one adapter as a plain LoRA that loads without this package.

    Args:
        model: a model with adapters, from ``attach``, ``load`` or ``peft.get_peft_model``.
        folder: created, or replaced where it already holds an adapter.
        format: ``peft``.
        rank: rank of the layers that have no exact form; None for the smallest that stays within `tolerance`.
        tolerance: largest relative error per layer when `rank` is None.
        adapter_name: None for the active adapter.

    Raises:
        UserError: unknown format, or a method whose ΔW cannot be written as a LoRA on the same base.
    """
    if format not in FORMATS:
        raise UserError(f"unknown LoRA format '{format}'.{near_miss(format, FORMATS)} Known: {', '.join(FORMATS)}.")
    if not isinstance(model, PeftModel):
        raise UserError(f"export_lora needs a model with adapters, not a {type(model).__name__}.")
    name = model.active_adapters[0] if adapter_name is None else adapter_name
    _refuse_altered(model, name)
    prefix = "base_model.model." + ("model." if isinstance(model.get_base_model(), Backbone) else "")
    report = ExportReport(Path(folder))
    pairs: dict[str, Factors] = {}
    for path, layer in tuner_layers(model):
        if name in layer._get_available_adapters():
            key = path.removeprefix(prefix)
            pairs[key], report.errors[key] = _factors(layer, name, rank, tolerance)
            report.ranks[key] = len(pairs[key].A)
    if not pairs:
        raise UserError(f"the model has no adapter '{name}' to export.")
    _write(report.folder, pairs, [path.removeprefix(prefix) for path, _ in model.named_modules()])
    return report


def _factors(layer: nn.Module, name: str, rank: int | None, tolerance: float) -> tuple[Factors, float]:
    """Factors of one layer and their relative error."""
    own = layer_factors(layer, name)
    return (own, 0.0) if own is not None else truncate(effective_delta(layer, name), rank, tolerance)


@torch.no_grad()
def effective_delta(layer: nn.Module, name: str) -> Tensor:
    """ΔW (out, in) in float64 of any linear layer whose method can be merged: merge(W) - W.

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
    """The best approximation of ΔW (out, in) of a rank, or of the smallest rank within a relative error."""
    U, sigma, Vt = torch.linalg.svd(delta, full_matrices=False)
    total = sigma.square().sum()
    # tail[k] = what is lost by keeping k directions
    tail = torch.cat([sigma.square().flip(0).cumsum(0).flip(0), sigma.new_zeros(1)])
    if rank is None:
        rank = max(int((tail > tolerance**2 * total).sum()), 1)
    rank = min(rank, len(sigma))
    error = math.sqrt(float(tail[rank] / total)) if total > 0 else 0.0
    return Factors((Vt[:rank]).float(), (U[:, :rank] * sigma[:rank]).float(), 1.0), error


def _write(folder: Path, pairs: dict[str, Factors], names: list[str]) -> None:
    """Tensors, config and a short README. Layers of another rank or scale than the first get a pattern of their own."""
    first = next(iter(pairs.values()))
    config = peft.LoraConfig(
        r=len(first.A), lora_alpha=first.scale * len(first.A), target_modules=_targets(pairs, names)
    )
    for key, pair in pairs.items():
        if len(pair.A) != config.r:
            config.rank_pattern[f"^{re.escape(key)}"] = len(pair.A)
        if pair.scale * len(pair.A) != config.lora_alpha:
            config.alpha_pattern[f"^{re.escape(key)}"] = pair.scale * len(pair.A)
    state = {}
    for key, pair in pairs.items():
        state[f"base_model.model.{key}.lora_A.weight"] = pair.A.detach().cpu().contiguous().clone()
        state[f"base_model.model.{key}.lora_B.weight"] = pair.B.detach().cpu().contiguous().clone()
    with replaced(folder) as new:
        save_file(state, new / TENSORS, metadata={"format": "pt"})
        write_config(config, new)
        (new / CARD).write_text(
            "---\nlibrary_name: peft\ntags: [lora]\n---\n\nA plain LoRA. Load it with "
            "`peft.PeftModel.from_pretrained(model, folder)` on the model whose linears adapter_config.json names; for "
            "timm and open_clip models split the attention first: `vision_lowrank.split_attention(model)`.\n",
            encoding="utf-8",
        )


def _targets(pairs: dict[str, Factors], names: list[str]) -> list[str] | str:
    """The exported layers as PEFT's ``target_modules``: their names, or where PEFT, which compares the ends of names,
    would take others too, a regular expression.
    """
    ambiguous = any(name.endswith(f".{key}") for key in pairs for name in names if name not in pairs)
    return "|".join(re.escape(key) for key in sorted(pairs)) if ambiguous else sorted(pairs)


def _refuse_altered(model: PeftModel, name: str) -> None:
    config = model.peft_config.get(name)
    start = getattr(config, "init_lora_weights", None)
    altered = isinstance(start, str) and start.startswith(ALTERING)
    if altered or getattr(config, "kasa_config", None) is not None:
        method = start if altered else "kasa"
        raise UserError(
            f"{method} changed the frozen weights when it attached: its B A is not the whole change; use merge instead."
        )
