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
from ..engine.progress import say
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
    shots: str | None,
    data: str | None,
    data_root: str | None,
    protocol: Protocol,
) -> None:
    """Run the sweep, or a grid of sweeps, print its tables, say where everything is."""
    if seeds:
        overrides = [*overrides, f"task.seeds=[{','.join(map(str, _numbers('--seeds', seeds, int)))}]"]
    is_grid = bool(shots or data or data_root or protocol != "fewshot")
    name = f"benchmark-{config.stem}-{protocol}" if is_grid else f"compare-{config.stem}"
    folder = out or Path("runs") / (name if budget == "defaults" else f"{name}-{budget}")
    learning_rates = _numbers("--lr", rates, float) if rates else ()
    sweep = Sweep(config, entries(methods, initializers), folder, overrides, budget, learning_rates)
    if is_grid:
        names = [each.strip() for each in (data or "").split(",") if each.strip()]
        names = list(COOP_11) if names == ["coop"] else names
        grid = Grid(sweep, protocol, _numbers("--shots", shots, int) if shots else (), names, data_root)
        shown, files = tables(_run(benchmark, grid)), [f"benchmark.{suffix}" for suffix in ("md", "csv", "tex", "json")]
    else:
        shown = [(f"{config.stem}, budget {budget}", *table(_run(compare, sweep)))]
        files = [*(f"comparison.{suffix}" for suffix in ("md", "csv", "json")), "pareto.svg"]
    for title, header, lines in shown:
        print_table(_table(f"{title} (accuracies in percent)", header, lines))
    for file in files:
        print(folder / file)


def _run(function: Callable[..., dict[str, Any]], argument: Any) -> dict[str, Any]:
    """Call `function`; a run that was interrupted says how to go on."""
    try:
        return function(argument, say)
    except Interrupted as stop:
        print(f"{stop} Go on with: {shlex.join(['vision-lowrank', *sys.argv[1:]])}", file=sys.stderr)
        raise typer.Exit(stop.exit_code) from None


def _table(title: str, header: list[str], lines: list[list[str]]) -> Table:
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
