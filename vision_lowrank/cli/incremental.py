"""``vision-lowrank incremental``: ``compare`` of class-incremental recipes, the same sessions for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..config import check_recipe, read_recipe
from ..errors import UserError
from .sweeps import Launch, numbers, print_results, resumable, split


def incremental_command(
    given: list[str], seeds: str | None, rates: str | None, out: Path | None, launch: Launch
) -> None:
    """Run the study, print its tables, say where everything is.

    Args:
        given: recipes, and among them settings for all of them, which have an equals sign.
        seeds: numbers with commas between, None = the recipes' own.
        rates: learning rates with commas between, None = each recipe's own.
        out: the study's folder; None = one under ``runs`` with what the recipes' names share.
        launch: where jobs run.

    Raises:
        UserError: a recipe of another task; or as the study's.
    """
    recipes, overrides = split("incremental", given, seeds)
    chosen = numbers("--lr", rates, float)
    launch.check()
    for recipe in recipes:
        check_recipe(recipe, overrides)
        task = read_recipe(recipe, overrides).tree["task"]["type"]
        if task != "incremental":
            raise UserError(
                f"{recipe}: its task is {task}: give recipes of `task: {{type: incremental}}`, or use compare."
            )
    from ..studies.columns import tables  # torch, only now
    from ..studies.pages import study_files
    from ..studies.recipes import Recipes, shared_prefix
    from ..studies.study import run_study

    folder = out or Path("runs") / f"incremental-{shared_prefix(recipes)}".rstrip("_-")
    study = replace(Recipes(recipes, chosen).study(folder, overrides), title="class-incremental learning")
    result = resumable(run_study, study, launch.made(folder))
    print_results(tables(result), study_files(folder))
