"""``vision-lowrank compare``: several methods on the same data and splits."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import typer
from rich.table import Table

from ..comparison import Budget, Sweep, compare, entries, table
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
    if seeds:
        overrides = [*overrides, f"task.seeds=[{','.join(map(str, _numbers('--seeds', seeds, int)))}]"]
    folder = out or Path("runs") / (f"compare-{config.stem}" + ("" if budget == "defaults" else f"-{budget}"))
    sweep = Sweep(
        config,
        entries(methods, initializers),
        folder,
        overrides,
        budget,
        _numbers("--lr", rates, float) if rates else (),
    )
    try:
        result = compare(sweep, lambda line: print(line, file=sys.stderr, flush=True))
    except Interrupted as stop:
        print(f"{stop} Go on with: {shlex.join(['vision-lowrank', *sys.argv[1:]])}", file=sys.stderr)
        raise typer.Exit(stop.exit_code) from None
    header, lines = table(result)
    shown = Table(title=f"{config.stem} (budget: {budget}; accuracies in percent)")
    for column in header:
        shown.add_column(column, overflow="fold")
    for line in lines:
        shown.add_row(*line)
    print_table(shown)
    for name in ("comparison.md", "comparison.csv", "comparison.json", "pareto.svg"):
        print(folder / name)


def _numbers(option: str, text: str, kind: type) -> list:
    try:
        return [kind(each) for each in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: give numbers with commas between, such as {option} 1,2,3.") from None
