"""An image classifier: backbone, perhaps an adapter, and a head; and the artefact it is saved as.

An artefact is a folder::

    artefact.json       head, class names, templates, preprocessing, base model and its fingerprint, the run's record
    head.safetensors    the head's tensors (absent for a text head, which has none)
    adapter/            PEFT's adapter folder (absent without an adapter)
    base.safetensors    the base's parameters that were trained themselves (absent where none were)
    reference.safetensors   features of some training pictures (absent where none are kept): :mod:`.reference`

It holds all that prediction needs but the untrained base weights, and refuses any other base.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...adapters.store import checksum
from ...adapters.store import load as load_adapter
from ...adapters.store import save as save_adapter
from ...backbones.base import fingerprint
from ...backbones.load import load_backbone
from ...data.transforms import Preprocess
from ...errors import ArtefactError
from ...targets.attention import fuse_attention
from .heads import HeadName, TextHead, make_head


class ImageClassifier(nn.Module):
    """``forward(pixels (B, 3, H, W)) -> logits (B, C)``.

    Attributes:
        model: backbone, attached or not.
        head: one of :mod:`.heads`.
        classes: class names, index = column of the logits.
        fingerprint: of the base weights, before any of them trained.
        trained_base: names, inside the backbone, of the base's parameters that were trained themselves.
    """

    def __init__(self, model: nn.Module, head: HeadName, classes: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__()
        self.model, self.head_name = model, head
        self.classes, self.templates = tuple(classes), tuple(templates)
        self.head = make_head(head, model, classes, templates)
        self.fingerprint, self.trained_base = model.fingerprint, set[str]()

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.head(self.model, self.model.encode_image(pixels))

    @property
    def scale(self) -> Tensor | float | None:
        """What cosines are multiplied by to give the logits; None for a linear head, whose logits are no cosines."""
        return self.model.logit_scale if isinstance(self.head, TextHead) else getattr(self.head, "scale", None)

    def freeze_text(self) -> None:
        """Encode the class prompts once; for evaluation and for a text tower that does not train.

        Where the text tower changes afterwards, or its adapters are switched, they are encoded anew at every call.
        """
        if isinstance(self.head, TextHead):
            self.head.refresh(self.model)

    def unfreeze_text(self) -> None:
        """Encode the class prompts anew at every call."""
        if isinstance(self.head, TextHead):
            self.head.clear()

    def note_training(self) -> None:
        """Remember which base parameters train now; what trains beside an adapter is in the adapter's own folder."""
        if not hasattr(self.model, "peft_config"):
            self.trained_base |= {name for name, p in self.model.named_parameters() if p.requires_grad}

    def save(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the artefact; `record` is kept beside it (config, versions, metrics)."""
        folder.mkdir(parents=True, exist_ok=True)
        if base := self._base_state():
            save_file(base, folder / "base.safetensors")
        if hasattr(self.model, "peft_config"):
            save_adapter(self.model, folder / "adapter")
        if state := self.head.state_dict():
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "head.safetensors")
        about = {
            "task": "classification",
            "backbone": self.model.spec,
            "fingerprint": self.fingerprint,
            "head": self.head_name,
            "classes": self.classes,
            "templates": self.templates,
            "preprocess": self.model.preprocess.to_dict(),
            "adapter": hasattr(self.model, "peft_config"),
            "base": checksum(base) if base else None,
            "record": dict(record),
        }
        (folder / "artefact.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: str | Path, backbone: nn.Module | None = None) -> ImageClassifier:
        """Read an artefact back, in evaluation mode.

        Args:
            folder: what :meth:`save` wrote.
            backbone: the base model, if it is loaded already; otherwise it is loaded by the name in the artefact.

        Raises:
            ArtefactError: not an artefact, damaged, or made for another base model.
        """
        folder = Path(folder)
        about = read_artefact(folder)
        backbone = backbone if backbone is not None else load_backbone(**about["backbone"])
        if backbone.fingerprint != about["fingerprint"]:
            raise ArtefactError(
                f"{folder}: made for base weights {about['fingerprint']} ({about['backbone']['name']}), but "
                f"'{backbone.name}' has {backbone.fingerprint}: load the base it was trained on."
            )
        backbone.preprocess = Preprocess.from_dict(about["preprocess"])
        base = _load_base(folder / "base.safetensors", backbone, about["base"]) if about.get("base") else set()
        model = load_adapter(folder / "adapter", backbone) if about["adapter"] else backbone
        classifier = cls(model, about["head"], about["classes"], about["templates"])
        classifier.fingerprint, classifier.trained_base = about["fingerprint"], base
        if classifier.head.state_dict():
            classifier._load_head(folder / "head.safetensors")
        classifier.eval()
        classifier.freeze_text()
        return classifier

    def _base_state(self) -> dict[str, Tensor]:
        """The base's trained parameters, by their names in a backbone as ``load_backbone`` gives it."""
        if not self.trained_base:
            return {}
        plain = self.model
        if hasattr(plain, "peft_config"):
            plain = fuse_attention(copy.deepcopy(plain).unload())  # an adapter has split attention and wrapped layers
            self._belongs_to(fingerprint(plain.model))
        return {n: p.detach().contiguous() for n, p in plain.named_parameters() if n in self.trained_base}

    def _belongs_to(self, weights: str) -> None:
        """Let the adapters say that they belong to a base of the fingerprint `weights`: the one trained beside them."""
        self.model.get_base_model().fingerprint = weights
        for name, place in self.model.attachments.items():
            self.model.attachments[name] = replace(place, fingerprint=weights)

    def _load_head(self, path: Path) -> None:
        try:
            self.head.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ArtefactError(f"{path}: the head cannot be read ({reason}): the artefact is damaged.") from None

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Class probabilities (B, C), float32."""
        return self(pixels).float().softmax(dim=-1)


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
    backbone.fingerprint = fingerprint(backbone.model)
    return set(state)


def read_artefact(folder: Path) -> dict[str, Any]:
    """The content of ``artefact.json``.

    Raises:
        ArtefactError: the file is missing or not valid.
    """
    path = folder / "artefact.json"
    if not path.is_file():
        hint = sorted(str(found.parent) for found in folder.rglob("artefact.json")) if folder.is_dir() else []
        raise ArtefactError(
            f"{folder}: no artefact here (artefact.json is missing)." + (f" Did you mean {hint[0]}?" if hint else "")
        )
    try:
        about = json.loads(path.read_text())
        missing = {"backbone", "fingerprint", "head", "classes", "templates", "preprocess", "adapter"} - about.keys()
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        raise ArtefactError(f"{path}: not valid JSON: the artefact is damaged.") from None
    if missing:
        raise ArtefactError(f"{path}: lacks {', '.join(sorted(missing))}: the artefact is damaged or of another kind.")
    return about
