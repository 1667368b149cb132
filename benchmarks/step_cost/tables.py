"""What a training step costs, by model and batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lowrank.viz.text import markdown

Result = Mapping[str, Any]


def render_tables(result: Result) -> str:
    """Render one table per model and batch, cheapest first."""
    parts = []
    for title, entry in result["entries"].items():
        lines = [
            [
                f"`{name}`",
                f"{1000 * row['seconds']:.0f} ms",
                f"{row['ratio']:.2f}",
                f"{row['cpu_ratio']:.2f}",
                f"{row['peak_bytes'] / 2**20:.0f} MiB",
                f"{row['trained_parameters']:,}",
            ]
            for name, row in sorted(entry["sides"].items(), key=lambda item: item[1]["ratio"])
        ]
        header = ["side", "step", "ratio to the floor", "of processor time", "peak memory", "trained"]
        refused = "".join(f"\n`{name}` was left out: {reason}\n" for name, reason in entry["refused"].items())
        parts.append(f"**{title}**, {entry['rounds']} rounds\n\n{markdown(header, lines)}{refused}")
    return "\n".join(parts)
