"""An image classifier: backbone, perhaps an adapter, and a head; and the artefact it is saved as.

Its artefact holds, beside what :mod:`vision_lowrank.tasks.artefact` writes, ``head``, ``classes`` and ``templates`` in
``artefact.json``, and::

    head.safetensors    the head's tensors (absent for a text head, which has none)
    reference.safetensors   features of some training pictures (absent where none are kept): :mod:`.reference`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ArtefactError
from ..about import check_about, read_about
from ..artefact import AdaptedModel, load_model, load_part, save_part
from .heads import HeadName, TextHead, make_head


class ImageClassifier(AdaptedModel):
    """``forward(pixels (B, 3, H, W)) -> logits (B, C)``.

    Attributes:
        head: one of :mod:`.heads`.
        classes: class names, index = column of the logits.
    """

    def __init__(self, model: nn.Module, head: HeadName, classes: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__(model)
        self.head_name = head
        self.classes, self.templates = tuple(classes), tuple(templates)
        self.head = make_head(head, model, classes, templates)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.head(self.backbone, self.backbone.encode_image(pixels))

    @property
    def scale(self) -> Tensor | float | None:
        """What cosines are multiplied by to give the logits; None for a linear head, whose logits are no cosines."""
        return self.backbone.logit_scale if isinstance(self.head, TextHead) else getattr(self.head, "scale", None)

    def freeze_text(self) -> None:
        """Encode the class prompts once; for evaluation and for a text tower that does not train.

        Where the text tower changes afterwards, or its adapters are switched, they are encoded anew at every call.
        """
        if isinstance(self.head, TextHead):
            self.head.refresh(self.backbone)

    def unfreeze_text(self) -> None:
        """Encode the class prompts anew at every call."""
        if isinstance(self.head, TextHead):
            self.head.clear()

    def save(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the artefact; `record` is kept beside it (config, versions, metrics)."""
        about = {
            "task": "classification",
            "head": self.head_name,
            "classes": self.classes,
            "templates": self.templates,
        }
        self.save_model(folder, about, record)
        if self.head.state_dict():
            save_part(self.head, folder / "head.safetensors")

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
        model, base = load_model(folder, about, backbone)
        classifier = cls(model, about["head"], about["classes"], about["templates"])
        classifier.fingerprint, classifier.trained_base = about["fingerprint"], base
        if classifier.head.state_dict():
            load_part(classifier.head, folder / "head.safetensors", "head")
        classifier.eval()
        classifier.freeze_text()
        return classifier

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Class probabilities (B, C), float32."""
        return self(pixels).float().softmax(dim=-1)


def read_artefact(folder: Path) -> dict[str, Any]:
    """The content of a classifier's ``artefact.json``.

    Raises:
        ArtefactError: the file is missing or not valid, or belongs to another task.
    """
    about = read_about(folder)
    if about.get("task") == "manipulation":
        raise ArtefactError(f"{folder}: holds a manipulation detector: use it with `vision-lowrank scan --model`.")
    check_about(folder, about, ("head", "classes", "templates"))
    return about
