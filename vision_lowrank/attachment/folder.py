"""An adapter's folder, read without PEFT: its files, where the adapter sits, and the checks that it must pass.

::

    adapter_config.json           as PEFT writes it
    adapter_model.safetensors     likewise
    vision_lowrank.json           the backbone and the fingerprint of its weights, where the adapter sits, the SHA-256
                                  of the tensors, the model's outputs on a fixed probe, and `factors`
    factors.safetensors           ΔW of every layer as factors, where the tensors themselves are none
    README.md                     for people

``factors`` in the record says in which of the two files ΔW = scale · B A stands, their SHA-256 and the scale; it is
null for a method that has no such form. Then, or where the file was removed to save space, only PEFT can load the
adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..errors import ArtefactError, UserError
from ..targets.select import Layers

CONFIG, TENSORS, FACTORS = "adapter_config.json", "adapter_model.safetensors", "factors.safetensors"
RECORD, CARD = "vision_lowrank.json", "README.md"
FORMAT = 1
# Relative difference of the probe outputs that other hardware and kernels may cause.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Attachment:
    """Where an adapter sits and on what.

    Attributes:
        backbone: name that :func:`load_backbone` knows.
        weights: tag or file of the base weights; None for random ones.
        fingerprint: of the base weights, unsplit.
        towers: names of the adapted towers.
        layers: which blocks, as given to :func:`attach`.
        modules: logical names; empty where the config named its target modules itself.
        options: further options of :func:`load_backbone`.
    """

    backbone: str
    weights: str | None
    fingerprint: str
    towers: tuple[str, ...]
    layers: Layers | Mapping[str, Layers]
    modules: tuple[str, ...]
    options: dict[str, Any]


def attachment_of(record: dict[str, Any], folder: Path) -> Attachment:
    """Return where the adapter of `folder` sits, as its `record` says.

    Raises:
        ArtefactError: a record of another format, or damaged.
    """
    if record.get("format") != FORMAT:
        raise ArtefactError(
            f"'{folder / RECORD}' has format {record.get('format')}, not {FORMAT}: use the version that wrote it."
        )
    try:
        fields = record["attachment"]
        for name in ("towers", "modules"):
            fields[name] = tuple(fields[name])
        return Attachment(**fields)
    except (KeyError, TypeError) as error:
        raise ArtefactError(f"'{folder / RECORD}' is damaged ({error}): get a fresh copy.") from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read the JSON object in a file of the folder.

    Raises:
        ArtefactError: missing or damaged.
    """
    path = folder / name
    if not path.is_file():
        remedy = (
            "load a plain PEFT adapter with peft.PeftModel.from_pretrained" if name == RECORD else "get a fresh copy"
        )
        raise ArtefactError(f"'{path}' is missing: {remedy}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ArtefactError(f"'{path}' is damaged: {str(error).splitlines()[0]}; get a fresh copy.") from error
    if not isinstance(values, dict):
        raise ArtefactError(f"'{path}' is damaged: it is no JSON object; get a fresh copy.")
    return values


def read_tensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file with this checksum.

    Raises:
        ArtefactError: missing, damaged, or not what was saved.
    """
    if not path.is_file():
        raise ArtefactError(f"'{path}' is missing: the adapter is incomplete; get a fresh copy.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtefactError(f"'{path}' is damaged: {reason}; get a fresh copy.") from error
    if checksum(state) != sha256:
        raise ArtefactError(f"'{path}' is not what was saved: its checksum differs; get a fresh copy.")
    return state


def checksum(state: Mapping[str, Tensor]) -> str:
    """Compute SHA-256 over (name, type, shape, bytes) of all tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_base(attachment: Attachment, base: Any, folder: Path) -> None:
    """Refuse a base that the adapter of `folder` was not trained on.

    Raises:
        UserError: no backbone.
        ArtefactError: another one.
    """
    if not isinstance(base, Backbone):
        raise UserError(f"load needs a backbone from load_backbone, not a {type(base).__name__}.")
    if base.fingerprint != attachment.fingerprint:
        raise ArtefactError(
            f"'{folder}' was trained on {attachment.backbone} (weights {attachment.weights}, fingerprint "
            f"{attachment.fingerprint}), not on {base.name} (weights {base.weights}, fingerprint {base.fingerprint}): "
            "load that backbone."
        )


@torch.no_grad()
def probe_outputs(backbone: Backbone) -> dict[str, list[float]]:
    """Return the first 16 numbers of every output of a backbone's signature, in evaluation mode."""
    return {name: output[0, :16].double().tolist() for name, output in backbone.signature().items()}


def check_outputs(
    saved: Mapping[str, list[float]], now: Mapping[str, list[float]], model: nn.Module, folder: Path
) -> None:
    """Refuse an adapter with which `model` gives other probe outputs `now` than those `saved` with it.

    Raises:
        ArtefactError: they differ, or are not finite.
    """
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, 1e-2)
    for name, values in saved.items():
        before, after = torch.tensor(values), torch.tensor(now.get(name, []))
        different = before.shape != after.shape or (before - after).norm() > tolerance * before.norm()
        if different or not after.isfinite().all():
            raise ArtefactError(
                f"'{folder}': the {name} embedding of the probe is not what it was at save: "
                "the adapter's base or options differ; save it anew from the trained model."
            )
