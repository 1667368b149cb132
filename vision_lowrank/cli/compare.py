"""``vision-lowrank compare``: several methods on the same data and splits."""

from __future__ import annotations

from pathlib import Path

from ..data.coop_sets import COOP_11
from ..studies.comparison import Budget, Sweep, compare, entries, table
from ..studies.grid import Grid, Protocol, benchmark, tables
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
    if seeds:
        overrides = [*overrides, f"task.seeds={numbers('--seeds', seeds, int)}"]
    is_grid = bool(shots or data or data_root or protocol != "fewshot")
    name = f"benchmark-{config.stem}-{protocol}" if is_grid else f"compare-{config.stem}"
    folder = out or Path("runs") / (name if budget == "defaults" else f"{name}-{budget}")
    sweep = Sweep(config, entries(methods, initializers), folder, overrides, budget, numbers("--lr", rates, float))
    if is_grid:
        names = [each.strip() for each in (data or "").split(",") if each.strip()]
        names = list(COOP_11) if names == ["coop"] else names
        grid = Grid(sweep, protocol, numbers("--shots", shots, int), names, data_root)
        shown = tables(resumable(benchmark, grid))
        files = [f"benchmark.{suffix}" for suffix in ("md", "csv", "tex", "json")]
    else:
        shown = [(f"{config.stem}, budget {budget}", *table(resumable(compare, sweep)))]
        files = [*(f"comparison.{suffix}" for suffix in ("md", "csv", "json")), "pareto.svg"]
    print_results(shown, [folder / file for file in files])
