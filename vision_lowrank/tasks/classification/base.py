"""What all classification tasks share: evaluation on test and retention sets, metrics, and the artefact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset

from ...attachment.section import attach_section
from ...backbones.load import load_backbone
from ...config.schema import RunConfig
from ...data.base import ImageSet, Splits, TransformedImages
from ...engine.task import Batch, Outputs, Task, count
from ...errors import UserError
from ...initializers.base import GradientInitializer
from ...metrics.classification import classification_metrics
from ...modes import preserved
from ...registry import registry
from .classifier import ImageClassifier
from .heads import HeadName
from .initial_losses import calibration_losses


def load_splits(config: RunConfig) -> Splits:
    """The data set that a run names.

    Raises:
        UserError: it is one of another task's.
    """
    splits = registry.get("data", config.data.type).target(config.data)
    if not isinstance(splits, Splits):
        raise UserError(
            f"data '{config.data.type}' has edited pictures, not classes: use task manipulation for it, or data with "
            "classes, such as 'folder'."
        )
    return splits


def load_frozen(config: RunConfig, head: HeadName) -> nn.Module:
    """The frozen backbone that a run names.

    Raises:
        UserError: a text head was asked of a backbone without a text tower.
    """
    backbone = load_backbone(config.backbone.name, config.backbone.weights, **config.backbone.options)
    if head == "text" and "text" not in backbone.towers:
        raise UserError(f"backbone '{backbone.name}' has no text tower: set task.head=linear or task.head=cosine.")
    if config.backbone.crop_pct:
        backbone.preprocess = replace(backbone.preprocess, crop_pct=config.backbone.crop_pct)
    return backbone.requires_grad_(False)


def load_adapted(config: RunConfig, head: HeadName, train: ImageSet, templates: Sequence[str]) -> nn.Module:
    """The frozen backbone with the adapter that a run names, started by its initialiser.

    Args:
        config: the run.
        head: what classifies.
        train: the pictures that training may see: calibration batches are drawn from them.
        templates: prompt templates.

    Raises:
        UserError: an initialiser without an adapter.
    """
    return adapted(config, load_frozen(config, head), head, train, templates)


def adapted(
    config: RunConfig, backbone: nn.Module, head: HeadName, train: ImageSet, templates: Sequence[str]
) -> nn.Module:
    """`backbone`, which a run names, with the run's adapter; as :func:`load_adapted`."""
    if config.adapter is None:
        if config.initializer is not None:
            raise UserError("initializer: there is no adapter to start: add an `adapter`, or leave it out.")
        return backbone
    return attach_section(backbone, config.adapter, **starting(config, backbone, head, train, templates))


def starting(
    config: RunConfig, backbone: nn.Module, head: HeadName, train: ImageSet, templates: Sequence[str]
) -> dict[str, Any]:
    """The initialiser that a run names and the losses that it looks at, as ``attach`` takes them."""
    if config.initializer is None:
        return {}
    initializer = config.initializer.for_training(config.engine.lr, config.engine.warmup_steps)
    losses = None
    if isinstance(initializer, GradientInitializer):
        backbone.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
        losses = calibration_losses(train, templates, backbone.preprocess, head, initializer)
    return {"initializer": initializer, "losses": losses}


def prompted_sets(splits: Splits) -> dict[str, tuple[ImageSet, tuple[str, ...]]]:
    """Sets that are recognised by the prompts of their own classes, with the templates, by full name."""
    retention = {f"retention/{name}": (images, splits.templates) for name, images in splits.retention.items()}
    return retention | {f"transfer/{name}": each for name, each in splits.transfer.items()}


class ClassificationTask(Task):
    """Evaluates an :class:`ImageClassifier` on the test sets, and by prompts alone on retention and transfer sets."""

    headline = "accuracy"
    selects_by = "val/accuracy"

    def __init__(self, classifier: ImageClassifier, splits: Splits, val: ImageSet | None) -> None:
        super().__init__()
        self.model, self.splits, self.val_images = classifier, splits, val
        self.prompted = nn.ModuleDict()
        if "text" in classifier.backbone.towers:
            for name, (images, templates) in prompted_sets(splits).items():
                self.prompted[name] = ImageClassifier(classifier.backbone, "text", images.classes, templates)
        self._evaluated = classifier

    def replace_model(self, model: nn.Module) -> None:
        """Let all classifiers use `model`: the same backbone, adapted anew."""
        for classifier in (self.model, *self.prompted.values()):
            classifier.backbone = model

    def begin_training(self) -> None:
        """Remember which base weights train: the artefact must hold them."""
        self.model.note_training()

    def image_sets(self, split: Literal["val", "test"]) -> dict[str, ImageSet]:
        """Validation pictures, or every set that is tested: ``test/…``, ``retention/…`` and ``transfer/…``."""
        if split == "val":
            return {"val": self.val_images} if self.val_images else {}
        tests = {f"test/{name}": images for name, images in self.splits.tests.items()}
        prompted = {name: images for name, (images, _) in prompted_sets(self.splits).items() if name in self.prompted}
        return tests | prompted

    def eval_sets(self, split: Literal["val", "test"]) -> Mapping[str, Dataset]:
        """:meth:`image_sets` as tensors, without augmentation."""
        transform = self.model.backbone.preprocess.evaluation()
        return {name: TransformedImages(images, transform) for name, images in self.image_sets(split).items()}

    def begin_eval(self, set_name: str) -> None:
        """Choose the classifier of this set and encode its prompts once."""
        self._evaluated = dict(self.prompted.items()).get(set_name, self.model)
        self._evaluated.freeze_text()

    def eval_step(self, batch: Batch) -> Outputs:
        """Logits (B, C), labels (B,) and indices (B,)."""
        return {"logits": self._evaluated(batch["image"]), "label": batch["label"], "index": batch["index"]}

    def metrics(self, set_name: str, outputs: Outputs) -> dict[str, float]:
        """``accuracy`` and its kin, as in :mod:`vision_lowrank.metrics.classification`."""
        return classification_metrics(outputs["logits"], outputs["label"])

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """With the adapter off; what trains afterwards is left as it was."""
        with preserved(self), getattr(self.model.backbone, "disable_adapter", nullcontext)():
            yield

    def save_artefact(self, folder: Path, record: Mapping[str, Any]) -> None:
        """The classifier as an artefact folder."""
        self.model.save(folder, record)

    def describe(self) -> dict[str, Any]:
        """Classes, prompts, hashes of the test sets, and the number of trainable parameters."""
        return {
            "backbone": self.model.backbone.spec | {"fingerprint": self.model.backbone.fingerprint},
            "classes": len(self.model.classes),
            "templates": list(self.model.templates),
            "test_hashes": {name: images.hash for name, images in self.image_sets("test").items()},
            "trainable_parameters": count(p for p in self.parameters() if p.requires_grad),
        }
