"""The plots of a study, as SVG; `result` as in :mod:`.columns`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..metrics.names import is_share
from ..viz.plots import pareto, session_curves
from .columns import column, done_rows, facts_of, headline, series


def pareto_figure(result: Mapping[str, Any]) -> str | None:
    """Draw the headline on the first test set against trained parameters, as SVG; None where it has no points."""
    name = headline(result["task"], result["baseline"])
    points = [
        (row["method"], row["trained_parameters"], row["metrics"][name]["mean"], row["metrics"][name]["std"])
        for row in done_rows(result)
        if name in row["metrics"] and row["trained_parameters"] > 0
    ]
    if name is None or not is_share(name) or not points:
        return None
    baseline = result["baseline"].get(name)
    return pareto(points, column(result["task"], name), baseline["mean"] if baseline else None)


def series_figure(result: Mapping[str, Any]) -> str | None:
    """Draw the task's series of every variant, as SVG; None where there is no series."""
    facts = facts_of(result["task"])
    if facts.series is None:
        return None
    lines = {
        row["method"]: [(value["mean"], value["std"]) for value in series(result, row)] for row in done_rows(result)
    }
    baseline = [(value["mean"], value["std"]) for value in series(result, {"metrics": result["baseline"]})]
    return session_curves(lines, baseline, facts.series.title) if baseline else None
