"""Accuracy by augmentation, and how well features separate classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lowrank.viz.text import markdown, percent

Result = Mapping[str, Any]


def render_tables(result: Result) -> str:
    """Render accuracy by augmentation for each data set and number of shots; and how well features separate classes."""
    arms, parts = {row["augmentation"]: None for row in result["rows"]}, []
    for data, shots in dict.fromkeys((row["data"], row["shots"]) for row in result["rows"]):
        here = [row for row in result["rows"] if (row["data"], row["shots"]) == (data, shots)]
        cells = {(row["method"], row["contrastive"], row["augmentation"]): percent(row["accuracy"]) for row in here}
        lines = [["zero-shot", "", *[percent(here[0]["baseline"])] * len(arms)]]
        for method, contrast in dict.fromkeys((row["method"], row["contrastive"]) for row in here):
            shown = [cells.get((method, contrast, arm), "") for arm in arms]
            lines.append([method, "yes" if contrast else "no", *shown])
        parts.append(f"**{data}, {shots} shots**\n\n{markdown(['method', 'contrastive', *arms], lines)}")
    names = ("fisher", "silhouette", "margin", "knn", "probe")
    header, lines = ["model", "pictures", *names, "consistency"], []
    for model, versions in result["separation"].items():
        for version, values in versions.items():
            numbers = [f"{values[name]:.3f}" for name in names]
            lines.append([model, version, *numbers, f"{values.get('consistency', 1):.3f}"])
    parts.append(f"**separation of the test pictures of emoji**\n\n{markdown(header, lines)}")
    return "\n".join(parts)
