"""Tables for the terminal, with rich."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ..metrics.names import is_share, told
from ..studies.columns import printed
from ..viz.text import mean_and_spread, percent


def print_table(table: Table) -> None:
    """Print to standard output."""
    Console().print(table)


def metrics_table(result: Mapping[str, Any]) -> Table:
    """Make a table of untrained, trained and the difference, for the printed metrics of a run's ``result.json``."""
    seeds = len(result["seeds"])
    table = Table(title=f"{result['name']} ({seeds} seed{'s' if seeds > 1 else ''}; shares in percent)")
    beside = {name: each["metrics"] for name, each in result.get("references", {}).items() if "metrics" in each}
    table.add_column("metric", overflow="fold")
    for column in ("untrained", "trained", "change", *beside):
        table.add_column(column.replace("_", " "), justify="right")
    names = printed(result.get("task"), result["metrics"])
    for name in names:
        before, trained = result["baseline"].get(name), result["metrics"][name]
        change = f"{_scale(name) * (trained['mean'] - before['mean']):+.1f}" if before and is_share(name) else ""
        others = (shown(name, metrics.get(name)) for metrics in beside.values())
        table.add_row(told(name), shown(name, before), shown(name, trained), change, *others)
    table.caption = _rest(names, result["metrics"], "in result.json, and folded in the report")
    return table


def values_table(name: str, metrics: Mapping[str, float], task: str | None = None) -> Table:
    """Make a table of the printed metrics of one model.

    `task` is as in :func:`~vision_lowrank.studies.columns.printed`.
    """
    table = Table(title=f"{name} (shares in percent)")
    table.add_column("metric")
    table.add_column("value", justify="right")
    names = printed(task, metrics)
    for metric in names:
        table.add_row(told(metric), shown(metric, {"mean": metrics[metric], "std": 0.0, "n": 1}))
    table.caption = _rest(names, metrics, "written by --json FILE")
    return table


def shown(name: str, value: Mapping[str, float] | None) -> str:
    """Format ``mean ± spread``; fractions as percent."""
    if value is None:
        return ""
    return percent(value) if is_share(name) else mean_and_spread(value, 1, 3)


def size(count: float) -> str:
    """Format bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _rest(names: list[str], metrics: Mapping[str, Any], place: str) -> str | None:
    return f"{len(names)} of {len(metrics)} metrics; all are {place}" if len(names) < len(metrics) else None


def _scale(name: str) -> float:
    return 100.0 if is_share(name) else 1.0
