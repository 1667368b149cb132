"""What saved models of all tasks share: a backbone, perhaps an adapter, and the base's own weights that trained.

An artefact is a folder::

    artefact.json       the task, base model and its fingerprint, preprocessing, what the task adds, the run's record
    adapter/            PEFT's adapter folder (absent without an adapter)
    base.safetensors    the base's parameters that were trained themselves (absent where none were)

and what the task saves beside them. It holds all that prediction needs but the untrained base weights, and refuses any
other base.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..attachment.store import checksum
from ..attachment.store import load as load_adapter
from ..attachment.store import save as save_adapter
from ..attention.split import fuse_attention
from ..backbones.load import load_backbone
from ..data.transforms import Preprocess
from ..errors import ArtefactError


class AdaptedModel(nn.Module):
    """A backbone, attached or not, that can be saved with what trained.

    Attributes:
        model: backbone, attached or not.
        fingerprint: of the base weights, before any of them trained.
        trained_base: names, inside the backbone, of the base's parameters that were trained themselves.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model
        self.fingerprint, self.trained_base = model.fingerprint, set[str]()

    def note_training(self) -> None:
        """Remember which base parameters train now; what trains beside an adapter is in the adapter's own folder."""
        if not hasattr(self.backbone, "peft_config"):
            self.trained_base |= {name for name, p in self.backbone.named_parameters() if p.requires_grad}

    def save_model(self, folder: Path, about: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Write adapter, trained base weights and ``artefact.json``.

        Args:
            folder: created where it is missing.
            about: what the task adds to ``artefact.json``.
            record: config, versions and metrics of the run, kept beside it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if base := self._base_state():
            save_file(base, folder / "base.safetensors")
        if hasattr(self.backbone, "peft_config"):
            save_adapter(self.backbone, folder / "adapter")
        everything = {
            **about,
            "backbone": self.backbone.spec,
            "fingerprint": self.fingerprint,
            "preprocess": self.backbone.preprocess.to_dict(),
            "adapter": hasattr(self.backbone, "peft_config"),
            "base": checksum(base) if base else None,
            "record": dict(record),
        }
        (folder / "artefact.json").write_text(json.dumps(everything, indent=2, ensure_ascii=False) + "\n")

    def _base_state(self) -> dict[str, Tensor]:
        """The base's trained parameters, by their names in a backbone as ``load_backbone`` gives it."""
        if not self.trained_base:
            return {}
        plain = self.backbone
        if hasattr(plain, "peft_config"):
            plain = fuse_attention(copy.deepcopy(plain).unload())  # an adapter has split attention and wrapped layers
            plain.take_identity()
            self._belongs_to(plain.fingerprint)
        return {n: p.detach().contiguous() for n, p in plain.named_parameters() if n in self.trained_base}

    def _belongs_to(self, weights: str) -> None:
        """Let the adapters say that they belong to a base of the fingerprint `weights`: the one trained beside them."""
        self.backbone.get_base_model().fingerprint = weights
        for name, place in self.backbone.attachments.items():
            self.backbone.attachments[name] = replace(place, fingerprint=weights)


def load_model(folder: Path, about: Mapping[str, Any], backbone: nn.Module | None = None) -> tuple[nn.Module, set[str]]:
    """The model that :meth:`AdaptedModel.save_model` wrote, and the names of its base's trained parameters.

    Args:
        folder: the artefact.
        about: its ``artefact.json``.
        backbone: the base model, if it is loaded already; otherwise it is loaded by the name in the artefact.

    Raises:
        ArtefactError: damaged, or made for another base model.
    """
    backbone = backbone if backbone is not None else load_backbone(**about["backbone"])
    if backbone.fingerprint != about["fingerprint"]:
        raise ArtefactError(
            f"{folder}: made for base weights {about['fingerprint']} ({about['backbone']['name']}), but "
            f"'{backbone.name}' has {backbone.fingerprint}: load the base it was trained on."
        )
    backbone.preprocess = Preprocess.from_dict(about["preprocess"])
    base = _load_base(folder / "base.safetensors", backbone, about["base"]) if about.get("base") else set()
    return load_adapter(folder / "adapter", backbone) if about["adapter"] else backbone, base


def _load_base(path: Path, backbone: nn.Module, expected: str) -> set[str]:
    """Put trained parameters of the base into `backbone`, which has another fingerprint from then on; their names."""
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path}: cannot be read ({str(error).splitlines()[0]}): get a fresh copy.") from None
    if checksum(state) != expected:
        raise ArtefactError(f"{path}: is not what was saved, its checksum differs: get a fresh copy.")
    own = dict(backbone.named_parameters())
    odd = sorted(name for name, tensor in state.items() if name not in own or own[name].shape != tensor.shape)
    if odd:
        raise ArtefactError(
            f"{path}: '{odd[0]}' does not fit '{backbone.name}': pass a backbone as load_backbone gives."
        )
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    backbone.take_identity()
    return set(state)


def save_part(module: nn.Module, path: Path) -> None:
    """Write a head, or another part of a task, as safetensors; :func:`load_part` reads it."""
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)


def load_part(module: nn.Module, path: Path, what: str) -> None:
    """Fill a head, or another part that a task saved as safetensors, called `what` in messages.

    Raises:
        ArtefactError: the file cannot be read or does not fit.
    """
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ArtefactError(f"{path}: the {what} cannot be read ({reason}): the artefact is damaged.") from None
