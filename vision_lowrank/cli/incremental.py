"""``vision-lowrank incremental``: several methods of class-incremental learning, the same sessions for all."""

from __future__ import annotations

from pathlib import Path

from ..config import check_recipe
from ..errors import UserError
from .sweeps import numbers, print_results, resumable

FILES = (*(f"incremental.{suffix}" for suffix in ("md", "csv", "tex", "json")), "sessions.svg", "report.html")


def incremental_command(given: list[str], seeds: str | None, rates: str | None, out: Path | None) -> None:
    """Run the study, print its tables, say where everything is.

    Args:
        given: recipes, and among them settings for all of them, which have an equals sign.
        seeds: numbers with commas between, None = the recipes' own.
        rates: learning rates with commas between, None = each recipe's own.
        out: the study's folder; None = one under ``runs`` with what the recipes' names share.
    """
    recipes = [Path(each) for each in given if "=" not in each]
    overrides = [each for each in given if "=" in each]
    drawn, lrs = numbers("--seeds", seeds, int), numbers("--lr", rates, float)
    if not recipes:
        raise UserError("incremental: name at least one recipe.")
    for recipe in recipes:
        check_recipe(recipe, overrides)
    from ..studies.incremental import Study, shared_prefix, study, tables  # torch, only now

    name = f"incremental-{shared_prefix(recipes)}".rstrip("_-")
    folder = out or Path("runs") / name
    plan = Study(recipes, folder, overrides, drawn, lrs)
    print_results(tables(resumable(study, plan)), [folder / file for file in FILES])
