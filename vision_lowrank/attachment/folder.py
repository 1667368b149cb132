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
from ..modes import ordinary
from ..targets.select import Layers
from .record import COPY

CONFIG, CARD = "adapter_config.json", "README.md"
# Relative difference of the probe outputs that other hardware and kernels may cause.
TOLERANCE = {"float32": 1e-3, "float64": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


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


def attachment_of(record: Mapping[str, Any]) -> Attachment:
    """Return where an adapter sits, as its `record` from :func:`.record.read_record` says."""
    fields = record["attachment"]
    return Attachment(**fields | {name: tuple(fields[name]) for name in ("towers", "modules")})


def read_tensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file with this checksum, the one that a record has for it.

    Raises:
        ArtefactError: missing, in no record, damaged, not what was saved, or with numbers that are not finite.
    """
    if not path.is_file():
        raise ArtefactError(f"'{path}' is missing: what it belongs to is incomplete; {COPY}.")
    if sha256 is None:
        raise ArtefactError(f"'{path}' is in no record, so nobody knows whether it is what was saved; {COPY}.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtefactError(f"'{path}' is damaged: {reason}; get a fresh copy.") from error
    if checksum(state) != sha256:
        raise ArtefactError(f"'{path}' is not what was saved: its checksum differs; get a fresh copy.")
    for name, tensor in state.items():
        if not _is_finite(tensor):
            raise ArtefactError(
                f"'{path}': '{name}' holds numbers that are not finite, as a training that diverged leaves: train anew."
            )
    return state


def _is_finite(tensor: Tensor) -> bool:
    """Tell whether no number is NaN or infinite; a sum says so at once, unless it overflows."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    wide = tensor if tensor.itemsize > 1 else tensor.float()  # types of 8 bits know few operations
    return bool(wide.sum().isfinite()) or bool(wide.isfinite().all())


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
@ordinary()
def probe_outputs(backbone: Backbone) -> dict[str, list[float]]:
    """Return the first 16 numbers of every output of a backbone's signature, in evaluation mode."""
    return {name: output[0, :16].double().tolist() for name, output in backbone.signature().items()}


def coarsest_type(model: nn.Module) -> str:
    """Name the type of the parameters of `model` that is known to the fewest digits, such as ``bfloat16``."""
    names = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    return max(sorted(names & TOLERANCE.keys()) or ["float16"], key=TOLERANCE.__getitem__)


def check_outputs(record: Mapping[str, Any], now: Mapping[str, list[float]], model: nn.Module, folder: Path) -> None:
    """Refuse an adapter with which `model` gives other probe outputs `now` than its `record` has.

    Of two adapters in different towers each is asked for what it can change, so one side may have more outputs. An
    adapter that was saved in another precision may differ by what the coarser one leaves open.

    Raises:
        ArtefactError: they differ, or are not finite.
    """
    saved = record["probe"]
    tolerance = max(TOLERANCE[coarsest_type(model)], TOLERANCE[record.get("dtype", "float32")])
    for name in [each for each in saved if each in now] or list(saved):
        before, after = torch.tensor(saved[name]), torch.tensor(now.get(name, []))
        different = before.shape != after.shape or (before - after).norm() > tolerance * before.norm()
        if different or not after.isfinite().all():
            raise ArtefactError(
                f"'{folder}': the {name} embedding of the probe is not what it was at save: "
                "the adapter's base or options differ; save it anew from the trained model."
            )
