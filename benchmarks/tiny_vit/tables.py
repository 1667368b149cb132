"""What tiny-vit's frozen features are worth beside others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lowrank.viz.text import markdown, percent

Result = Mapping[str, Any]
TITLES = {"regions": "which photograph", "few_shot": "few-shot"}


def render_tables(result: Result) -> str:
    """Render a line for each base."""
    sets = [name for name in TITLES if name in result["sizes"]]
    header = ["features", "static probe", *(TITLES[name] for name in sets)]
    lines = [
        [name, f"{100 * row['static_probe']:.1f}", *(percent(row[each]) for each in sets)]
        for name, row in result["rows"].items()
    ]
    chance = [f"{100 / result['sizes'][name][1]:.1f}" for name in sets]
    lines.append(["chance", f"{100 * result['chance']:.1f}", *chance])
    return markdown(header, lines)
