"""Tables for the terminal, with rich."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

FRACTIONS = ("accuracy", "class_accuracy", "top5")


def print_table(table: Table) -> None:
    """Print to standard output."""
    Console().print(table)


def metrics_table(result: Mapping[str, Any]) -> Table:
    """Untrained, trained and the difference, for every metric of a run's ``result.json``."""
    seeds = len(result["seeds"])
    table = Table(title=f"{result['name']} ({seeds} seed{'s' if seeds > 1 else ''}; accuracies in percent)")
    for column, justify in (("metric", "left"), ("untrained", "right"), ("trained", "right"), ("change", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, trained in result["metrics"].items():
        before = result["baseline"].get(name)
        change = f"{_scale(name) * (trained['mean'] - before['mean']):+.1f}" if before and _is_fraction(name) else ""
        table.add_row(name, shown(name, before), shown(name, trained), change)
    return table


def values_table(name: str, metrics: Mapping[str, float]) -> Table:
    """Metrics of one model."""
    table = Table(title=f"{name} (accuracies in percent)")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for metric, value in metrics.items():
        table.add_row(metric, shown(metric, {"mean": value, "std": 0.0, "n": 1}))
    return table


def shown(name: str, value: Mapping[str, float] | None) -> str:
    """``mean ± spread``; fractions as percent."""
    if value is None:
        return ""
    scale, digits = _scale(name), 1 if _is_fraction(name) else 3
    spread = f" ± {scale * value['std']:.{digits}f}" if value["n"] > 1 else ""
    return f"{scale * value['mean']:.{digits}f}{spread}"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _is_fraction(name: str) -> bool:
    return name.rpartition("/")[2] in FRACTIONS or name.startswith(("session/", "incremental/"))


def _scale(name: str) -> float:
    return 100.0 if _is_fraction(name) else 1.0
