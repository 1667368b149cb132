"""Every adapter with every initialiser, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

from vision_lowrank.studies.columns import table
from vision_lowrank.studies.figures import pareto_figure
from vision_lowrank.viz.text import markdown

Result = Mapping[str, Any]


def render_tables(result: Result) -> str:
    """Render every adapter with every initialiser, and why some pairs do not exist."""
    header, lines = table(result)
    failed = [row for row in result["rows"] if "failed" in row]
    ran = [line for line in lines if line[0] not in {row["method"] for row in failed}]
    reasons: dict[str, list[str]] = {}
    for row in failed:
        reasons.setdefault(row["failed"], []).append(row["method"])
    refused = [f"* {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    wrapped = "".join(fill(line, 120, subsequent_indent="  ", break_on_hyphens=False) + "\n" for line in refused)
    return f"{markdown(header, ran)}\nLeft out, with the message that a user gets:\n\n{wrapped}"


def draw_figure(result: Result) -> str | None:
    """Draw accuracy against trained parameters, as SVG."""
    return pareto_figure(result)
