"""What the commands share that run many methods: lists of numbers, going on after an interruption, tables."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.table import Table

from ..errors import UserError
from .tables import print_table

Number = TypeVar("Number", int, float)


def resumable(function: Callable[..., dict[str, Any]], argument: Any) -> dict[str, Any]:
    """Call `function` with `argument` and what says its progress; a run that was interrupted says how to go on.

    Raises:
        typer.Exit: with code 130, it was interrupted.
    """
    from ..engine import Interrupted
    from ..engine.progress import say

    try:
        return function(argument, say)
    except Interrupted as stop:
        print(f"{stop} Go on with: {shlex.join(['vision-lowrank', *sys.argv[1:]])}", file=sys.stderr)
        raise typer.Exit(stop.exit_code) from None


def print_results(tables: Iterable[tuple[str, Sequence[str], Sequence[Sequence[str]]]], files: Iterable[Path]) -> None:
    """Print the tables (title, header, lines), and where the files are."""
    for title, header, lines in tables:
        shown = Table(title=f"{title} (accuracies in percent)")
        for column in header:
            shown.add_column(column, overflow="fold")
        for line in lines:
            shown.add_row(*line)
        print_table(shown)
    for file in files:
        print(file)


def numbers(option: str, text: str | None, kind: type[Number]) -> list[Number]:
    """``1,2,3`` as a list; nothing given is an empty one.

    Raises:
        UserError: not numbers with commas between.
    """
    try:
        return [kind(each) for each in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"{option} {text}: give numbers with commas between, such as {option} 1,2,3.") from None
