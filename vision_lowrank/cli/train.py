"""``vision-lowrank train``: run a recipe, print the table, say where everything is."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import typer

from ..config import check_recipe, check_settings, load_config, read_recipe
from ..errors import UserError
from ..files import sibling
from .stopping import interrupted
from .tables import metrics_table, print_table


def train_command(config: Path | None, overrides: list[str], resume: Path | None) -> None:
    """Train, evaluate and report.

    Raises:
        UserError: both or neither of `config` and `resume` are given, or anything that a run refuses.
    """
    if resume is not None and config is not None and "=" in str(config):
        config, overrides = None, [str(config), *overrides]  # the first of the overrides
    if (config is None) == (resume is None):
        raise UserError("train: give either a recipe (such as fewshot/emoji_lora) or --resume RUN_FOLDER.")
    if config is not None:
        check_recipe(config, overrides)
        _run(config, overrides, None)
    elif resume is not None:
        path = resume / "config.yaml"
        if not path.is_file():
            hint = "" if resume.is_dir() else sibling(resume)
            raise UserError(f"{resume}: no run to resume here (config.yaml is missing).{hint}")
        elsewhere = [each for each in overrides if each.partition("=")[0].strip() in ("name", "out")]
        if elsewhere:
            raise UserError(
                f"train: --resume goes on in {resume}, not at '{elsewhere[0]}': for a run of its own give the settings "
                f"as a recipe: vision-lowrank train {path} {elsewhere[0]}"
            )
        check_settings(*read_recipe(path, overrides))  # a finished run is shown though its data may be gone
        _run(path, overrides, resume)


def _run(path: Path, overrides: list[str], resumed: Path | None) -> None:
    """Run a recipe that was checked, in the folder that is resumed or its own; torch is imported from here on."""
    from ..engine import Interrupted, Runtime
    from ..studies.folder import run_folder
    from ..studies.references import warnings_of
    from ..studies.run import run

    settings = load_config(path, overrides)
    folder = resumed or run_folder(settings)
    again = shlex.join(["vision-lowrank", "train", "--resume", str(folder)])
    try:
        result = run(settings, folder)
    except Interrupted as stop:
        print(f"{stop} Go on with: {again}", file=sys.stderr)
        raise typer.Exit(stop.exit_code) from None
    except KeyboardInterrupt:  # outside of a stage's steps, or twice
        if not (folder / "config.yaml").is_file():
            raise
        raise interrupted(again) from None
    if not Runtime().is_main:
        return
    print_table(metrics_table(result))
    for name, each in result.get("references", {}).items():
        if "left_out" in each:
            print(f"{name} left out: {each['left_out']}")
    for sentence in warnings_of(result):
        print(f"warning: {sentence}", file=sys.stderr)
    print(f"report: {folder / 'report.html'}")
    for seed in result["seeds"]:
        print(f"artefact: {folder / f'seed-{seed}' / 'artefact'}")
