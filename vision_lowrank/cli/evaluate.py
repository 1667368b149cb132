"""``vision-lowrank eval``: metrics of a saved artefact, or of a recipe's untrained model."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from ..config import load_config, validate
from ..config.load import apply_overrides
from ..config.schema import RunConfig
from ..engine.loop import Engine
from ..errors import UserError
from ..experiment import build_task
from ..files import write_text
from ..tasks.base import Task
from ..tasks.classification.base import ClassificationTask, load_splits
from ..tasks.classification.classifier import ImageClassifier, read_artefact
from .tables import print_table, values_table


def evaluate_command(target: Path, overrides: list[str], json_path: Path | None) -> None:
    """Evaluate `target` on its test sets and print the table."""
    task, config = _artefact_task(target, overrides) if target.is_dir() else _recipe_task(target, overrides)
    with tempfile.TemporaryDirectory() as scratch:
        metrics = Engine(config.engine, task, Path(scratch), seed=config.seed).evaluate("test")
    print_table(values_table(str(target), metrics))
    if json_path:
        write_text(json_path, json.dumps(metrics, indent=1) + "\n")


def _recipe_task(path: Path, overrides: list[str]) -> tuple[Task, RunConfig]:
    config = load_config(path, overrides)
    return build_task(config, config.seed), config


def _artefact_task(folder: Path, overrides: list[str]) -> tuple[Task, RunConfig]:
    """The saved classifier on the data it was trained for, or on data of the same classes given by overrides."""
    tree = read_artefact(folder)["record"]["config"]
    config = validate(apply_overrides(tree, overrides), source=str(folder / "artefact.json"))
    classifier = ImageClassifier.load(folder)
    splits = load_splits(config)
    if splits.train.classes != classifier.classes:
        odd = sorted(set(splits.train.classes) ^ set(classifier.classes))
        raise UserError(
            f"{folder}: the artefact knows {len(classifier.classes)} classes, the data has {len(splits.train.classes)}"
            f"{f' (differing in {odd[0]!r})' if odd else ' in another order'}: evaluate it on data of the same classes."
        )
    return ClassificationTask(classifier, splits, splits.val), config
