"""``vision-lowrank compare``: variants on the same data and splits, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import check_recipe
from ..data.coop_sets import COOP_11
from ..errors import ConfigError, UserError
from ..studies.variants import (
    Budget,
    Entry,
    Tested,
    assignments,
    check_budget,
    check_protocol,
    data_override,
    entries,
)
from .sweeps import Launch, numbers, print_results, resumable, split

if TYPE_CHECKING:
    from ..studies.grid import Plan


@dataclass(frozen=True)
class Wanted:
    """What the command line says is compared.

    Attributes:
        methods: adapters and what goes with them, exchanged in one recipe; None where something else is compared.
        initializers: combined with each of them.
        budget: how large they are; None is equal rank, where the recipe has one.
        vary: settings that vary in one recipe.
        rates: learning rates to choose from.
    """

    methods: str | None
    initializers: str
    budget: Budget | None
    vary: Sequence[str]
    rates: str | None

    def check(self, recipes: Sequence[Path]) -> None:
        """Refuse unknown names, and options that do not go together, without importing torch.

        Raises:
            UserError: there are some.
        """
        if self.budget is not None:
            check_budget(self.budget)
        odd = next((rate for rate in numbers("--lr", self.rates, float) if not 0 < rate < math.inf), None)
        if odd is not None:
            raise UserError(f"--lr {self.rates}: {odd:g} is no learning rate: give numbers above 0.")
        if self.methods is None and (self.initializers != "none" or self.budget is not None):
            raise UserError("compare: --initializers and --budget are of --methods: name them, or --methods all.")
        if self.methods is not None and self.vary:
            raise UserError("compare: give either --methods or --vary.")
        if (self.methods is not None or self.vary) and len(recipes) != 1:
            raise UserError(f"compare: --methods and --vary are of one recipe, and {len(recipes)} are given.")
        self._entries()
        assignments(self.vary)

    def check_recipe(self, recipe: Path, overrides: Sequence[str]) -> None:
        """Refuse a recipe of which no variation can run; one that can is enough, the others cost their own rows.

        Raises:
            ConfigError: what is wrong with the first variation.
        """
        first: ConfigError | None = None
        for _, changes in assignments(self.vary):
            try:
                return check_recipe(recipe, [*overrides, *changes])
            except ConfigError as error:
                first = first or error
        if first:
            raise first

    def plan(self, recipes: Sequence[Path]) -> Plan:
        """Plan the variants, before any settings for all; torch is imported from here on."""
        from ..studies.methods import Methods
        from ..studies.recipes import Recipes, Variations

        rates = numbers("--lr", self.rates, float)
        if self.methods is not None:
            return Methods(recipes[0], self._entries(), self.budget, rates)
        return Variations(recipes[0], self.vary, rates) if self.vary else Recipes(recipes, rates)

    def _entries(self) -> list[Entry]:
        """Return the methods; none where something else is compared."""
        return [] if self.methods is None else entries(self.methods, self.initializers)


def compare_command(
    given: list[str],
    wanted: Wanted,
    seeds: str | None,
    out: Path | None,
    shots: str | None,
    data: str | None,
    data_root: str | None,
    protocol: Tested,
    launch: Launch,
) -> None:
    """Run the study, or a grid of studies, print its tables, say where everything is."""
    recipes, overrides = split("compare", given, seeds)
    few, names = numbers("--shots", shots, int), [each.strip() for each in (data or "").split(",") if each.strip()]
    names = list(COOP_11) if names == ["coop"] else names
    wanted.check(recipes)
    check_protocol(protocol)
    launch.check()
    fewest = [f"task.shots={min(few)}"] if few else []
    for source in [[data_override(name, data_root)] for name in names] or [[]]:
        for recipe in recipes:
            wanted.check_recipe(recipe, [*overrides, *fewest, *source])
    plan = wanted.plan(recipes)
    from ..studies.recipes import shared_prefix  # torch, only now

    is_grid = bool(few or names or data_root or protocol != "all")
    stem = recipes[0].stem if len(recipes) == 1 else shared_prefix(recipes).rstrip("_") or "recipes"
    name = f"grid-{stem}-{protocol}" if is_grid else f"compare-{stem}"
    folder = out or Path("runs") / (f"{name}-{wanted.budget}" if wanted.budget else name)
    if is_grid:
        _run_grid(folder, launch, plan, overrides=overrides, protocol=protocol, shots=few, data=names, root=data_root)
    else:
        _run_study(folder, launch, plan, overrides)


def _run_study(folder: Path, launch: Launch, plan: Plan, overrides: Sequence[str]) -> None:
    from ..studies.columns import tables
    from ..studies.pages import study_files
    from ..studies.study import run_study

    result = resumable(run_study, plan.study(folder, overrides), launch.made(folder))
    print_results(tables(result), study_files(folder))


def _run_grid(folder: Path, launch: Launch, plan: Plan, *, root: str | None, **options: Any) -> None:
    from ..studies.grid import Grid, run_grid, tables

    result = resumable(run_grid, Grid(plan, folder, data_root=root, **options), launch.made(folder))
    print_results(tables(result), [folder / f"grid.{suffix}" for suffix in ("md", "csv", "tex", "json")])
