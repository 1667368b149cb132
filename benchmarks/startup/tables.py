"""How long commands take to answer, beside importing the libraries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lowrank.viz.text import markdown

Result = Mapping[str, Any]


def render_tables(result: Result) -> str:
    """Render time, ratios and memory of every process."""
    lines = [
        [
            f"`{row['command']}`",
            f"{row['seconds']:.2f} s",
            f"{row['ratios']['torch']:.2f}",
            f"{row['ratios']['open_clip']:.2f}",
            f"{row['peak_bytes'] / 2**20:.0f} MiB",
        ]
        for row in result["rows"].values()
    ]
    return markdown(["process", "time", "of importing torch", "of torch and open_clip", "peak memory"], lines)
