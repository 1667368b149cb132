"""Every rule, regulariser and selection, under both protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lowrank.viz.text import markdown, percent

Result = Mapping[str, Any]
SETS = ("test/fluent/accuracy", "test/openmoji/accuracy", "retention/noto/accuracy", "retention/twemoji/accuracy")


def render_tables(result: Result) -> str:
    """Render every rule, regulariser and selection: both protocols, and what a step costs."""
    novel = {
        "base": "test/fluent/accuracy",
        "novel": "transfer/novel-fluent/accuracy",
        "harmonic mean": "harmonic_mean/fluent/accuracy",
    }
    first = result["rows"][0]
    untrained = [
        *(percent(first["baseline"][name]) for name in SETS),
        *(percent(first["base_to_novel_baseline"][name]) for name in novel.values()),
    ]
    lines = [["untrained", "", *untrained, "0", "", ""]]
    for row in result["rows"]:
        accuracies = [percent(row["metrics"][name]) for name in SETS]
        accuracies += [percent(row["base_to_novel"][name]) for name in novel.values()]
        cost = [f"{row['trained_parameters']:,}", f"{result['costs'][row['method']]['ratio']:.2f}"]
        lines.append([row["method"], f"{row['lr']:g}", *accuracies, *cost, f"{row['peak_memory'] / 2**20:.0f}"])
    short = [name.removeprefix("test/").removesuffix("/accuracy") for name in SETS]
    header = ["method", "lr", *short, *novel, "trained parameters", "step (ratio)", "step memory (MiB)"]
    return markdown(header, lines)
