"""A saved classifier or detector on the data that its run names, with the sets that the run tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..config import validate
from ..config.schema import RunConfig
from ..data.base import ImageSet, Splits
from ..data.protocols import base_to_novel, with_transfer
from ..engine.task import Task
from ..errors import UserError
from ..tasks.classification.base import ClassificationTask, load_splits
from ..tasks.classification.classifier import ImageClassifier
from .checks import recorded_recipe


def recorded_config(folder: Path, overrides: list[str]) -> RunConfig:
    """The config of the run that wrote an artefact, with other settings, such as ``data.root=…``, where given.

    Raises:
        UserError: the artefact was not saved by a run, or a setting is wrong.
    """
    return validate(*recorded_recipe(folder, overrides))


def recorded_splits(config: RunConfig) -> Splits:
    """All splits of a run: its data set, halved where its protocol says so, and what it transfers to."""
    splits = load_splits(config)
    if getattr(config.task, "protocol", "all") == "base_to_novel":
        splits, _, _ = base_to_novel(splits, splits.train, None)
    return with_transfer(splits, getattr(config.task, "transfer", ()))


def artefact_task(folder: Path, classifier: ImageClassifier, config: RunConfig) -> ClassificationTask:
    """`classifier`, which was read from `folder`, on the data that `config` names.

    Raises:
        UserError: the data has other classes; or as the data set's reader.
    """
    splits = recorded_splits(config)
    if config.task.type == "incremental" and set(classifier.classes) <= set(splits.train.classes):
        splits = _in_order(splits, classifier.classes)  # sessions have an order of their own, and may leave out some
    if splits.train.classes != classifier.classes:
        odd = sorted(set(splits.train.classes) ^ set(classifier.classes))
        raise UserError(
            f"{folder}: the artefact knows {len(classifier.classes)} classes, the data has {len(splits.train.classes)}"
            f"{f' (differing in {odd[0]!r})' if odd else ' in another order'}: evaluate it on data of the same classes."
        )
    return ClassificationTask(classifier, splits, splits.val)


def detector_task(folder: Path, config: RunConfig) -> Task:
    """The manipulation detector of `folder` on the data that `config` names.

    Raises:
        ArtefactError: `config` asks for another framing than the detector was trained with, and does not insist.
    """
    from ..tasks.manipulation.building import framing_of
    from ..tasks.manipulation.model import ManipulationModel
    from ..tasks.manipulation.task import Manipulation

    detector = ManipulationModel.load(folder)
    asked = framing_of(config.task, detector.backbone)
    if config.task.override_framing:
        detector.use_framing(asked)
    else:
        detector.framing.check(asked)
    # Stages make demands on their pictures that evaluating does not.
    scored = config.task.model_copy(update={"contrast": None, "layer": "last", "explanation": None})
    task = Manipulation(config.model_copy(update={"task": scored}), config.seed)
    task.use_detector(detector)
    return task


def _in_order(splits: Splits, classes: Sequence[str]) -> Splits:
    """The sets of all splits with the classes of an artefact, in its order."""

    def of(images: ImageSet) -> ImageSet:
        return images.of_classes([images.classes.index(name) for name in classes])

    tests = {name: of(images) for name, images in splits.tests.items()}
    return replace(splits, train=of(splits.train), val=of(splits.val), tests=tests, retention={})
