"""``vision-lowrank eval``: metrics of a saved artefact, or of a recipe's untrained model."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import RunConfig, check_recipe, load_config
from ..files import write_text
from .checks import check_recorded, recorded_config
from .tables import print_table, values_table

if TYPE_CHECKING:
    from ..engine.task import Task


def evaluate_command(target: Path, overrides: list[str], json_path: Path | None, trust: bool = False) -> None:
    """Evaluate `target` on its test sets and print the table."""
    saved = target.is_dir()
    check = check_recorded if saved else check_recipe
    check(target, overrides)
    from ..engine.loop import Engine  # torch, only now

    task, config = _saved_task(target, overrides, trust) if saved else _recipe_task(target, overrides)
    with tempfile.TemporaryDirectory() as scratch:
        settings = config.engine.model_copy(update={"tensorboard": False})  # nobody would see what is thrown away
        engine = Engine(settings, task, Path(scratch), seed=config.seed)
        metrics = engine.evaluate("test") if saved else engine.evaluate_untrained()
    print_table(values_table(str(target), metrics, config.task.type))
    if json_path:
        write_text(json_path, json.dumps(metrics, indent=1) + "\n")


def _recipe_task(path: Path, overrides: list[str]) -> tuple[Task, RunConfig]:
    from ..studies.run import build_task

    config = load_config(path, overrides)
    return build_task(config, config.seed), config


def _saved_task(folder: Path, overrides: list[str], trust: bool) -> tuple[Task, RunConfig]:
    """Load the saved model on the data it was trained for, or on other data given by overrides."""
    from ..tasks.saved import load_model

    config = recorded_config(folder, overrides)
    return load_model(folder, trust=trust).on(config), config
