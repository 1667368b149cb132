"""``vision-lowrank compare``: several methods on the same data and splits."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from ..benchmark import Grid, Protocol, benchmark, tables
from ..comparison import Budget, Sweep, compare, entries, table
from ..data.coop_sets import COOP_11
from ..engine import Interrupted
from ..errors import UserError
from .tables import print_table


def compare_command(
    config: Path,
    overrides: list[str],
    methods: str,
    initializers: str,
    budget: Budget,
    seeds: str | None,
    rates: str | None,
    out: Path | None,
) -> None:
    """Run the sweep, print its table, say where everything is."""
    folder = out or Path("runs") / (f"compare-{config.stem}" + ("" if budget == "defaults" else f"-{budget}"))
    sweep = _sweep(config, overrides, methods, initializers, budget, seeds, rates, folder)
    result = _run(compare, sweep)
    print_table(_shown(f"{config.stem} (budget: {budget}; accuracies in percent)", *table(result)))
    for name in ("comparison.md", "comparison.csv", "comparison.json", "pareto.svg"):
        print(folder / name)


def grid_command(
    config: Path,
    overrides: list[str],
    methods: str,
    initializers: str,
    budget: Budget,
    seeds: str | None,
    rates: str | None,
    out: Path | None,
    *,
    shots: str | None,
    data: str | None,
    data_root: str | None,
    protocol: Protocol,
) -> None:
    """Run the grid, print its tables, say where everything is."""
    folder = out or Path("runs") / f"benchmark-{config.stem}-{protocol}"
    sweep = _sweep(config, overrides, methods, initializers, budget, seeds, rates, folder)
    names = list(COOP_11) if data == "coop" else (data or "").replace(" ", "").split(",") if data else []
    grid = Grid(sweep, protocol, _numbers("--shots", shots, int) if shots else (), names, data_root)
    result = _run(benchmark, grid)
    for title, header, lines in tables(result):
        print_table(_shown(f"{title} (accuracies in percent)", header, lines))
    for name in ("benchmark.md", "benchmark.csv", "benchmark.tex", "benchmark.json"):
        print(folder / name)


def _sweep(
    config: Path,
    overrides: list[str],
    methods: str,
    initializers: str,
    budget: Budget,
    seeds: str | None,
    rates: str | None,
    folder: Path,
) -> Sweep:
    if seeds:
        overrides = [*overrides, f"task.seeds=[{','.join(map(str, _numbers('--seeds', seeds, int)))}]"]
    learning_rates = _numbers("--lr", rates, float) if rates else ()
    return Sweep(config, entries(methods, initializers), folder, overrides, budget, learning_rates)


def _run(function: Callable[..., dict[str, Any]], argument: Any) -> dict[str, Any]:
    """Call `function`; a run that was interrupted says how to go on."""
    try:
        return function(argument, lambda line: print(line, file=sys.stderr, flush=True))
    except Interrupted as stop:
        print(f"{stop} Go on with: {shlex.join(['vision-lowrank', *sys.argv[1:]])}", file=sys.stderr)
        raise typer.Exit(stop.exit_code) from None


def _shown(title: str, header: list[str], lines: list[list[str]]) -> Table:
    shown = Table(title=title)
    for column in header:
        shown.add_column(column, overflow="fold")
    for line in lines:
        shown.add_row(*line)
    return shown


def _numbers(option: str, text: str, kind: type) -> list:
    try:
        return [kind(each) for each in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: give numbers with commas between, such as {option} 1,2,3.") from None
