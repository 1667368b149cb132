"""Base-to-novel and transfer, a table each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lowrank.studies.grid import tables
from vision_lowrank.viz.text import markdown

Result = Mapping[str, Any]


def render_tables(result: Result) -> str:
    """Render one table per protocol."""
    parts = []
    for protocol, rows in result["protocols"].items():
        for title, header, lines in tables({"task": "fewshot", "protocol": protocol, "rows": rows}):
            parts.append(f"**{title}**\n\n{markdown(header, lines)}")
    return "\n".join(parts)
