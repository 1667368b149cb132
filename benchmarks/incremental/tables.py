"""Two tables of every study over sessions, and the plot of emoji's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lowrank.studies.columns import tables
from vision_lowrank.studies.figures import series_figure
from vision_lowrank.viz.text import markdown

Result = Mapping[str, Any]


def render_tables(result: Result) -> str:
    """Render both tables of every study."""
    parts = []
    for name, study in result["studies"].items():
        for title, header, lines in tables(study):
            parts.append(f"**{name}: {title}**\n\n{markdown(header, lines)}")
    return "\n".join(parts)


def draw_figure(result: Result) -> str | None:
    """Draw accuracy after every session of emoji, as SVG."""
    return series_figure(result["studies"]["emoji"])
