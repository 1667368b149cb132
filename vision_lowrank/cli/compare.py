"""``vision-lowrank compare``: several methods on the same data and splits."""

from __future__ import annotations

from pathlib import Path

from ..config import check_recipe
from ..config.load import read_recipe
from ..config.sections import known_keys
from ..data.coop_sets import COOP_11
from ..errors import UserError
from ..registry import registry
from ..studies.variants import INCOMPARABLE, Budget, Protocol, check_budget, check_protocol, data_override, entries
from .sweeps import numbers, print_results, resumable


def compare_command(
    config: Path,
    overrides: list[str],
    methods: str,
    initializers: str,
    budget: Budget,
    seeds: str | None,
    rates: str | None,
    out: Path | None,
    shots: str | None,
    data: str | None,
    data_root: str | None,
    protocol: Protocol,
) -> None:
    """Run the sweep, or a grid of sweeps, print its tables, say where everything is."""
    section = read_recipe(config, overrides).tree.get("task")
    task = section.get("type") if isinstance(section, dict) else None
    if task in {part.name for part in registry.list("task")} and "shots" not in known_keys("task", task):
        raise UserError(f"{config}: {INCOMPARABLE}")
    if seeds:
        overrides = [*overrides, f"task.seeds={numbers('--seeds', seeds, int)}"]
    is_grid = bool(shots or data or data_root or protocol != "fewshot")
    name = f"benchmark-{config.stem}-{protocol}" if is_grid else f"compare-{config.stem}"
    folder = out or Path("runs") / (name if budget == "defaults" else f"{name}-{budget}")
    check_budget(budget)
    check_protocol(protocol)
    names = [each.strip() for each in (data or "").split(",") if each.strip()]
    names = list(COOP_11) if names == ["coop"] else names
    chosen, few, lrs = entries(methods, initializers), numbers("--shots", shots, int), numbers("--lr", rates, float)
    for given in [[data_override(name, data_root)] for name in names] or [[]]:
        check_recipe(config, [*overrides, *given])
    from ..studies.comparison import Sweep, compare, table  # torch, only now
    from ..studies.grid import Grid, benchmark, tables

    sweep = Sweep(config, chosen, folder, overrides, budget, lrs)
    if is_grid:
        grid = Grid(sweep, protocol, few, names, data_root)
        shown = tables(resumable(benchmark, grid))
        files = [f"benchmark.{suffix}" for suffix in ("md", "csv", "tex", "json")]
    else:
        shown = [(f"{config.stem}, budget {budget}", *table(resumable(compare, sweep)))]
        files = [*(f"comparison.{suffix}" for suffix in ("md", "csv", "json")), "pareto.svg"]
    print_results(shown, [folder / file for file in files])
