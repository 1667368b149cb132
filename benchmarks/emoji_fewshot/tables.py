"""Accuracies and costs of the main comparison, and accuracy against shots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lowrank.viz.plots import accuracy_by_shots
from vision_lowrank.viz.text import markdown, percent

Result = Mapping[str, Any]
NAMES = {
    "linear_probe": "linear probe",
    "lora": "LoRA",
    "block_lora": "Block-LoRA",
    "comp_lora": "Comp-LoRA",
    "glad": "GLAD",
}
SETS = {
    "trained style (Fluent)": "test/fluent/accuracy",
    "other unseen style (OpenMoji)": "test/openmoji/accuracy",
    "retention: Noto": "retention/noto/accuracy",
    "retention: Twemoji": "retention/twemoji/accuracy",
}


def render_tables(result: Result) -> str:
    """Render accuracies and costs of the main comparison."""
    return f"{accuracies(result)}\n{costs(result)}"


def draw_figure(result: Result) -> str:
    """Draw accuracy on the trained style against shots, as SVG."""
    name = SETS["trained style (Fluent)"]
    rows = [
        {"method": NAMES[row["method"]], "shots": row["shots"], **{k: row["metrics"][name][k] for k in ("mean", "std")}}
        for row in result["rows"]
    ]
    return accuracy_by_shots(rows, title="accuracy on Fluent, unseen in pretraining")


def accuracies(result: Result) -> str:
    """Render accuracy by method and number of shots, the untrained model first."""
    first = next(row for row in result["rows"] if row["method"] == "lora")
    lines = [["0", "zero-shot", *(percent(first["baseline"][name]) for name in SETS.values())]]
    for row in result["rows"]:
        lines.append([str(row["shots"]), NAMES[row["method"]], *(percent(row["metrics"][n]) for n in SETS.values())])
    return markdown(["shots", "method", *SETS], lines)


def costs(result: Result) -> str:
    """Render parameters, step time and memory of each method at 4 shots."""
    seconds, lines = result["step_seconds"], []
    for row in result["rows"]:
        if row["shots"] == 4:
            step = seconds[row["method"]]
            cost = [f"{1000 * step:.0f} ms", f"{step / seconds['lora']:.2f}", f"{row['peak_memory'] / 2**20:.0f} MiB"]
            lines.append([NAMES[row["method"]], f"{row['trainable_parameters']:,}", *cost])
    return markdown(["method", "trainable parameters", "step", "ratio to LoRA", "peak memory"], lines)
