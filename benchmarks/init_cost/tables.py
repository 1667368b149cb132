"""What a start costs, by initialiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lowrank.viz.text import markdown

Result = Mapping[str, Any]


def render_tables(result: Result) -> str:
    """Render time and memory of each initialiser."""
    lines = [
        [f"`{name}`", f"{row['seconds']:.1f} s", f"{row['peak_bytes'] / 2**20:.0f} MiB"]
        for name, row in result["rows"].items()
    ]
    return markdown(["initialiser", "time", "peak memory beside the model"], lines)
