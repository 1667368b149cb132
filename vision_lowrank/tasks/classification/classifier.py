"""An image classifier: backbone, perhaps an adapter, and a head; and the artefact it is saved as.

Its artefact holds, beside what :mod:`vision_lowrank.tasks.saved` writes, ``head``, ``classes`` and ``templates`` in
``artefact.json``, and::

    head.safetensors    the head's tensors (absent for a text head, which has none)
    reference.safetensors   features of some training pictures (absent where none are kept): :mod:`.reference`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...data.options import check_templates
from ...export.onnx_graph import OnnxGraph, draw_pictures
from ...json_files import Strict
from ...registry import register
from ..about import About, Text
from ..saved import AdaptedModel, load_part, restore_backbone
from .heads import HeadName, TextHead, make_head

HEAD = "head.safetensors"


class Addition(Strict):
    """Classes that were added after the training."""

    classes: list[str]


class ClassifierAbout(About):
    """What ``artefact.json`` says of a classifier."""

    head: HeadName
    classes: list[Text] = Field(min_length=1)
    templates: list[Text]
    history: list[Addition] = Field(default_factory=list)

    @model_validator(mode="after")
    def _prompts(self) -> ClassifierAbout:
        if len(self.classes) * len(self.templates) > MOST_PROMPTS:
            raise ValueError(f"{len(self.classes)} classes x {len(self.templates)} templates are too many prompts")
        check_templates(self.templates)
        if self.head == "text" and not self.templates:
            raise ValueError("a text head needs a template of its prompts")
        return self


MOST_PROMPTS = 10**6  # more would fill the memory of whoever loads them


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one picture.

    Attributes:
        top: (class, probability), the most probable first.
    """

    top: tuple[tuple[str, float], ...]

    def to_row(self) -> dict[str, Any]:
        """Return ``class``, ``probability`` and ``top``, a list of both."""
        ranked = [[name, round(probability, 6)] for name, probability in self.top]
        return {"class": ranked[0][0], "probability": ranked[0][1], "top": ranked}

    def to_cells(self) -> dict[str, str]:
        """Return the class, its probability, and what comes next."""
        (name, probability), *others = self.top
        then = ", ".join(f"{other} {100 * p:.0f}%" for other, p in others)
        return {"class": name, "probability": f"{100 * probability:.1f}%", "then": then}


@register("model", "classification", summary="classes of pictures: backbone, perhaps an adapter, and a head")
class ImageClassifier(AdaptedModel):
    """``forward(pixels (B, 3, H, W)) -> logits (B, C)``.

    Attributes:
        head: one of :mod:`.heads`.
        classes: class names, index = column of the logits.
    """

    task: ClassVar[str] = "classification"
    about_model: ClassVar[type[About]] = ClassifierAbout
    exports: ClassVar[tuple[str, ...]] = (*AdaptedModel.exports, "onnx")

    def __init__(self, model: nn.Module, head: HeadName, classes: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__(model)
        self.head_name = head
        self.classes, self.templates = tuple(classes), tuple(templates)
        self.head = make_head(head, model, classes, templates)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (B, C)."""
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

    def onnx_graph(self) -> OnnxGraph:
        """Say how the network is called as an ONNX graph, the class features of a text head a constant from now on."""
        self.freeze_text()
        preprocess = self.backbone.preprocess
        about = {"classes": self.classes, **preprocess.to_dict()}
        draw = lambda count: (draw_pictures(count, preprocess.size),)  # noqa: E731
        return OnnxGraph("classifier.onnx", ("pixels",), ("logits",), draw, about)

    def save(self, folder: str | Path, record: Mapping[str, Any]) -> None:
        """Write the artefact; `record` is kept beside it (config, versions, metrics)."""
        about = {
            "task": self.task,
            "head": self.head_name,
            "classes": self.classes,
            "templates": self.templates,
        }
        self.save_model(folder, about, record, {HEAD: self.head.state_dict()})

    @classmethod
    def load(
        cls, folder: str | Path, backbone: nn.Module | None = None, *, attach: bool = False, trust: bool = False
    ) -> ImageClassifier:
        """Read an artefact back, in evaluation mode.

        Args:
            folder: what :meth:`save` wrote.
            backbone: the base model, if it is loaded already; otherwise it is loaded by the name in the artefact.
            attach: as for :func:`~vision_lowrank.tasks.saved.load_model`.
            trust: likewise.

        Raises:
            ArtefactError: not an artefact, damaged, made for another base model, or it asks for what needs trust.
        """
        folder = Path(folder)
        about = cls.read(folder)
        model = restore_backbone(folder, about, backbone, attach=attach, trust=trust)
        classifier = cls(model, about["head"], about["classes"], about["templates"])
        classifier.restore(about)
        if classifier.head.state_dict():
            load_part(classifier.head, folder / HEAD, about, "head")
        classifier.eval()
        classifier.freeze_text()
        return classifier

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Compute class probabilities (B, C), float32."""
        return self(pixels).float().softmax(dim=-1)

    def predict_batch(self, images: Sequence[Image.Image], *, top: int = 3) -> list[Prediction]:
        """Predict the classes of RGB pictures, in one batch.

        Args:
            images: of any size.
            top: classes to name for each.
        """
        device = next(self.backbone.parameters()).device
        pixels = torch.stack([self.backbone.transform(image) for image in images]).to(device)
        values, columns = self.probabilities(pixels).topk(min(top, len(self.classes)))
        return [
            Prediction(tuple((self.classes[column], p) for column, p in zip(labels, probabilities, strict=True)))
            for labels, probabilities in zip(columns.tolist(), values.tolist(), strict=True)
        ]
