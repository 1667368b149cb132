"""``vision-lowrank train``: run a recipe, print the table, say where everything is."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from ..config import load_config
from ..engine import Interrupted, Runtime
from ..errors import UserError
from ..studies.run import run, run_folder
from .tables import metrics_table, print_table


def train_command(config: Path | None, overrides: list[str], resume: Path | None) -> None:
    """Train, evaluate and report.

    Raises:
        UserError: both or neither of `config` and `resume` are given, or anything that a run refuses.
    """
    if (config is None) == (resume is None):
        raise UserError("train: give either a recipe (such as configs/fewshot/emoji_lora.yaml) or --resume RUN_FOLDER.")
    if resume is not None and not (resume / "config.yaml").is_file():
        raise UserError(f"{resume}: no run to resume here (config.yaml is missing).")
    settings = load_config(resume / "config.yaml" if resume else config, overrides)  # type: ignore[arg-type]
    folder = run_folder(settings)
    try:
        result = run(settings)
    except Interrupted as stop:
        print(f"{stop} Go on with: vision-lowrank train --resume {folder}", file=sys.stderr)
        raise typer.Exit(stop.exit_code) from None
    if not Runtime().is_main:
        return
    print_table(metrics_table(result))
    print(f"report: {folder / 'report.html'}")
    for seed in result["seeds"]:
        print(f"artefact: {folder / f'seed-{seed}' / 'artefact'}")
