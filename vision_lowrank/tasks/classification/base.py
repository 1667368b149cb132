"""What all classification tasks share: evaluation on test and retention sets, metrics, and the artefact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset

from ...attachment.parameters import backbone_of
from ...attachment.section import attach_section
from ...backbones.adapted import without_adapter
from ...backbones.load import load_backbone
from ...backbones.roles import TextEncoder
from ...config.schema import RunConfig
from ...data.base import ImageSet, Splits
from ...data.gives import read_data
from ...data.loading import TransformedImages
from ...data.summary import class_names, notes_of, picture_counts
from ...engine.task import Batch, Outputs, Task, count
from ...errors import DataError, UserError
from ...initializers.base import GradientInitializer
from ...metrics.classification import classification_metrics
from ...modes import preserved
from .classifier import ImageClassifier
from .details import write_confusion, write_mistakes
from .heads import HeadName
from .initial_losses import calibration_losses


def load_splits(config: RunConfig) -> Splits:
    """Load the data set that a run names.

    Raises:
        UserError: it gives no classes, or only one.
    """
    splits = read_data(config.data, "classes")
    if len(splits.train.classes) < 2:
        raise DataError(
            f"data '{config.data.type}' has a single class, '{splits.train.classes[0]}', so that there is nothing to "
            "tell apart: give two or more, each in a folder of its own or with a label of its own."
        )
    return splits


def load_frozen(config: RunConfig, head: HeadName) -> nn.Module:
    """Load the frozen backbone that a run names.

    Raises:
        UserError: a text head was asked of a backbone without a text tower.
    """
    backbone = load_backbone(**config.backbone.arguments)
    if head == "text" and not isinstance(backbone, TextEncoder):
        raise UserError(f"backbone '{backbone.name}' has no text tower: set task.head=linear or task.head=cosine.")
    if config.backbone.crop_pct:
        backbone.preprocess = replace(backbone.preprocess, crop_pct=config.backbone.crop_pct)
    return backbone.requires_grad_(False)


def load_adapted(config: RunConfig, head: HeadName, train: ImageSet, templates: Sequence[str]) -> nn.Module:
    """Load the frozen backbone and attach the adapter that a run names, started by its initialiser.

    Args:
        config: the run.
        head: what classifies.
        train: the pictures that training may see: calibration batches are drawn from them.
        templates: prompt templates.

    Raises:
        UserError: an initialiser without an adapter.
    """
    return with_adapter(config, load_frozen(config, head), head, train, templates)


def with_adapter(
    config: RunConfig, backbone: nn.Module, head: HeadName, train: ImageSet, templates: Sequence[str]
) -> nn.Module:
    """Attach a run's adapter, where it has one, to `backbone`, which the run names; as :func:`load_adapted`."""
    if config.adapter is None:
        if config.initializer is not None:
            raise UserError("initializer: there is no adapter to start: add an `adapter`, or leave it out.")
        return backbone
    return attach_section(backbone, config.adapter, **starting(config, backbone, head, train, templates))


def starting(
    config: RunConfig, backbone: nn.Module, head: HeadName, train: ImageSet, templates: Sequence[str]
) -> dict[str, Any]:
    """Return the initialiser that a run names and the losses that it looks at, as ``attach`` takes them."""
    if config.initializer is None:
        return {}
    initializer = config.initializer.for_training(config.engine.lr, config.engine.warmup_steps)
    losses = None
    if isinstance(initializer, GradientInitializer):
        backbone.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
        losses = calibration_losses(train, templates, backbone.preprocess, head, initializer)
    return {"initializer": initializer, "losses": losses}


def prompted_sets(splits: Splits) -> dict[str, tuple[ImageSet, tuple[str, ...]]]:
    """Return the sets that are recognised by the prompts of their own classes, with the templates, by full name."""
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
        if isinstance(backbone_of(classifier.backbone), TextEncoder):
            for name, (images, templates) in prompted_sets(splits).items():
                self.prompted[name] = ImageClassifier(classifier.backbone, "text", images.classes, templates)
        self._evaluated = classifier

    @classmethod
    def of_model(cls, model: Any, config: RunConfig) -> Task:
        """Return a task for a saved classifier on the data that `config` names, which must have its classes.

        Raises:
            UserError: it is no classifier, the data has other classes; or as the data set's reader.
        """
        if not isinstance(model, ImageClassifier):
            return super().of_model(model, config)
        splits = cls.splits_of(config, model.classes)
        if splits.train.classes != model.classes:
            odd = sorted(set(splits.train.classes) ^ set(model.classes))
            raise UserError(
                f"the artefact knows {len(model.classes)} classes, the data has {len(splits.train.classes)}"
                f"{f' (differing in {odd[0]!r})' if odd else ' in another order'}: evaluate it on data of the same "
                "classes."
            )
        return ClassificationTask(model, splits, splits.val)

    @classmethod
    def splits_of(cls, config: RunConfig, classes: Sequence[str]) -> Splits:
        """Load all sets that a run of `config` evaluates a classifier of `classes` on."""
        return load_splits(config)

    def replace_model(self, model: nn.Module) -> None:
        """Let all classifiers use `model`: the same backbone, adapted anew."""
        for classifier in (self.model, *self.prompted.values()):
            classifier.backbone = model

    def begin_training(self) -> None:
        """Remember which base weights train: the artefact must hold them."""
        self.model.note_training()

    def image_sets(self, split: Literal["val", "test"]) -> dict[str, ImageSet]:
        """Return validation pictures, or every set that is tested: ``test/…``, ``retention/…`` and ``transfer/…``."""
        if split == "val":
            return {"val": self.val_images} if self.val_images else {}
        tests = {f"test/{name}": images for name, images in self.splits.tests.items()}
        prompted = {name: images for name, (images, _) in prompted_sets(self.splits).items() if name in self.prompted}
        return tests | prompted

    def eval_sets(self, split: Literal["val", "test"]) -> Mapping[str, Dataset]:
        """Return :meth:`image_sets` as tensors, without augmentation."""
        transform = self.model.backbone.preprocess.evaluation()
        return {name: TransformedImages(images, transform) for name, images in self.image_sets(split).items()}

    def begin_eval(self, set_name: str) -> None:
        """Choose the classifier of this set and encode its prompts once."""
        self._evaluated = dict(self.prompted.items()).get(set_name, self.model)
        self._evaluated.freeze_text()

    def eval_step(self, batch: Batch) -> Outputs:
        """Return logits (B, C), labels (B,) and indices (B,)."""
        return {"logits": self._evaluated(batch["image"]), "label": batch["label"], "index": batch["index"]}

    def metrics(self, set_name: str, outputs: Outputs) -> dict[str, float]:
        """Compute ``accuracy`` and its kin, as in :mod:`vision_lowrank.metrics.classification`."""
        return classification_metrics(outputs["logits"], outputs["label"])

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """Turn the adapter off inside the block; what trains afterwards is left as it was."""
        with preserved(self), without_adapter(self.model.backbone):
            yield

    def save_artefact(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Save the classifier as an artefact folder."""
        self.model.save(folder, record)

    def write_details(self, folder: Path, outputs: Mapping[str, Outputs]) -> None:
        """Write ``details.json``, class names and confusion matrices of the test sets, and ``mistakes.json``.

        The latter holds the most confident wrong predictions.
        """
        tests = {name: found for name, found in outputs.items() if name.startswith("test/")}
        write_confusion(folder / "details.json", self.model.classes, tests)
        write_mistakes(folder / "mistakes.json", self.image_sets("test"), tests)

    def data_summary(self) -> list[str]:
        """Return the class names, the pictures of all sets, and how they were read."""
        sets = {"train": self.splits.train, "val": self.val_images, **self.image_sets("test")}
        return [class_names(self.splits.train.classes), picture_counts(sets), *notes_of(sets)]

    def describe(self) -> dict[str, Any]:
        """Return classes, prompts, hashes of the test sets, and the number of trainable parameters."""
        return {
            "backbone": self.model.backbone.spec | {"fingerprint": self.model.backbone.fingerprint},
            "classes": len(self.model.classes),
            "templates": list(self.model.templates),
            "test_hashes": {name: images.hash for name, images in self.image_sets("test").items()},
            "trainable_parameters": count(p for p in self.parameters() if p.requires_grad),
        }
