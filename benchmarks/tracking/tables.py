"""Trackers over clips, arms over seeds, and success by what makes a clip hard."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, pstdev
from typing import Any

from vision_lowrank.studies.figures import pareto_figure
from vision_lowrank.viz.text import markdown, mean_and_spread, percent

Result = Mapping[str, Any]
METRICS = {
    "success AUC": "success_auc",
    "normalised precision": "normalized_precision",
    "OP50": "op50",
    "precision at 20 px": "precision",
}
NAMES = {
    "lora+truncated_normal": "LoRA, LoRAT's start",
    "lora": "LoRA, usual start",
    "none": "frozen",
    "full": "full fine-tuning",
    "lora, two templates": "LoRA, two templates",
    "lora, template update": "LoRA, template update",
}
TEST = "test/emoji_scenes/"


def render_tables(result: Result) -> str:
    """Render trackers, arms and attributes."""
    about, arms = result["conditions"], result["arms"]
    clips = f"{about['clips']} clips of {about['frames']} frames"
    pairs = f"{about['pairs']:,} pairs"
    return "\n".join(
        (
            f"**Trackers: {clips}, mean ± spread over clips**\n\n{trackers(result)}",
            f"**Arms: {pairs} each, {len(arms['seeds'])} seeds, mean ± spread over seeds; {arms['sizes']}**\n\n"
            f"{arms_table(arms)}",
            f"**Success AUC by what makes a clip hard**\n\n{attributes(result)}",
        )
    )


def draw_figure(result: Result) -> str | None:
    """Draw success against trained parameters, as SVG."""
    return pareto_figure(result["arms"])


def trackers(result: Result) -> str:
    """Render every tracker over the clips."""
    lines = [
        [name, *(percent(row["metrics"][metric]) for metric in METRICS.values())]
        for name, row in result["trackers"].items()
    ]
    return markdown(["tracker", *METRICS], lines)


def arms_table(arms: Result) -> str:
    """Render every arm, with its difference to full fine-tuning seed by seed."""
    full = next((row["seeds"] for row in arms["rows"] if row["method"] == "full"), None)
    lines = [["no motion", "", *(percent(arms["baseline"][f"{TEST}{name}"]) for name in METRICS.values()), "", "0", ""]]
    for row in arms["rows"]:
        values = [percent(row["metrics"][f"{TEST}{name}"]) for name in METRICS.values()]
        ratio = f"{row['step_ratio']:.2f}" if "step_ratio" in row else ""
        own = [NAMES.get(row["method"], row["method"]), f"{row['lr']:g}"]
        lines.append([*own, *values, _difference(row["seeds"], full), f"{row['trained_parameters']:,}", ratio])
    return markdown(["arm", "lr", *METRICS, "AUC − full", "trained parameters", "step (ratio)"], lines)


def attributes(result: Result) -> str:
    """Render success by attribute of the trackers."""
    names = list(result["trackers"])
    lines = [
        [name, str(count), *(f"{100 * result['trackers'][each]['attributes'][name]:.1f}" for each in names)]
        for name, count in result["attributes"].items()
    ]
    return markdown(["attribute", "clips", *names], lines)


def _difference(own: Mapping[str, float], full: Mapping[str, float] | None) -> str:
    """Format the mean difference of seeds that both have, with its spread."""
    values = [own[seed] - full[seed] for seed in own if seed in full] if full else []
    if not values or own == full:
        return ""
    return mean_and_spread({"mean": fmean(values), "std": pstdev(values), "n": len(values)}, 100, 1)
