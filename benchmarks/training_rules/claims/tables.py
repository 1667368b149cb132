"""What the papers of the rules claim, a table per claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vision_lowrank.viz.text import markdown, percent

Found = Mapping[str, Any]
RETAINED = ["accuracy", "retention"]


def render_tables(result: Mapping[str, Any]) -> str:
    """Render one section per claim that has been measured."""
    entries = result["entries"]
    return "\n".join(
        f"**{TITLES[name]}**\n\n{TABLES[name](entries[name]['found'])}" for name in TABLES if name in entries
    )


def lora_pro_step(found: Found) -> str:
    """Render distances and cosines by run, and by part of it."""
    names = ("lora gradient", "lora_pro gradient", "step")
    lines = [
        [f"`{run}`", part, *(f"{row[f'{name}, {kind}']:.2f}" for name in names for kind in ("distance", "cosine"))]
        for run, parts in found.items()
        for part, row in parts.items()
    ]
    header = ["LoRA's gradient: distance", "cosine", "LoRA-Pro's: distance", "cosine", "step taken: distance", "cosine"]
    return markdown(["run", "steps", *header], lines)


def sharpness(found: Found) -> str:
    """Render accuracies, loss on the training pictures, and its rises."""
    rises = [name for name in next(iter(found.values())) if name.startswith(("random ", "ascent "))]
    lines = [
        [f"`{method}`", *map(percent, (row["accuracy"], row["retention"])), *(spread(row[n]) for n in ("loss", *rises))]
        for method, row in found.items()
    ]
    return markdown(["method", *RETAINED, "loss", *rises], lines)


def glad_sharpness(found: Found) -> str:
    """Render sharpness and the cosines of the two gradients."""
    cosines = ", ".join(f"{spread(row['cosine'])} in `{name}`" for name, row in found.items() if "cosine" in row)
    return f"{sharpness(found)}\nMean cosine of the two gradients of a step: {cosines}.\n"


def ggpo_sharpness(found: Found) -> str:
    """Render sharpness and the courses of the loss."""
    lines = [
        [str(row["r"]), f"{row['rate']}x", f"`{row['method']}`", f"{row['final']:.3f}", f"{row['rise']:.3f}"]
        for row in found["curves"]
    ]
    header = ["r", "learning rate", "method", "loss of the last 20 steps", "rise after the minimum"]
    return f"{sharpness(found['sharpness'])}\n{markdown(header, lines)}"


def allora_optimizers(found: Sequence[Found]) -> str:
    """Render one line per optimiser and method, accuracy and loss by step."""
    runs: dict[tuple[str, str], list[Found]] = {}
    for row in found:
        runs.setdefault((row["optimizer"], row["method"]), []).append(row)
    lines = [
        [optimizer, f"`{method}`", f"{rows[0]['rate']:g}"]
        + [percent(row["accuracy"]) for row in rows]
        + [spread(row["loss"]) for row in rows]
        for (optimizer, method), rows in sorted(runs.items(), reverse=True)
    ]
    at = [row["steps"] for row in next(iter(runs.values()))]
    measured = [f"{name}, {step} steps" for name in ("accuracy", "loss") for step in at]
    return markdown(["optimiser", "method", "learning rate", *measured], lines)


def lisa_memory(found: Found) -> str:
    """Render MiB by model and side."""
    kinds = ("state", "gradients", "activations", "peak")
    lines = [
        [model, side, f"{100 * row['share']:.1f} %", *(f"{row[kind] / 2**20:,.0f} MiB" for kind in kinds)]
        for model, sides in found.items()
        for side, row in sides.items()
    ]
    return markdown(["model", "method", "trained", "optimiser state", "gradients", "saved activations", "peak"], lines)


def selection(found: Found) -> str:
    """Render accuracies of choices and controls, and how far the choices agree."""
    lines = [["`lora`, everywhere", *map(percent, map(found["lora"].get, RETAINED)), "100 %", "", ""]]
    for method, row in found.items():
        if method == "lora":
            continue
        overlaps = f"{row['jaccard']:.2f}", f"{row['jaccard_by_chance']:.2f}"
        for kind, name, own in (("chosen", f"`{method}`", overlaps), ("random", "random, as large", ("", ""))):
            accuracies = [percent(row[kind][each]) for each in RETAINED]
            lines.append([name, *accuracies, f"{100 * row['share']:.0f} %", *own])
    header = ["adapter on", *RETAINED, "of the modules", "overlap between seeds", "by chance"]
    return markdown(header, lines)


def ba_lora_retention(found: Found) -> str:
    """Render the accuracies of the penalties."""
    lines = [["untrained", *(f"{100 * found['untrained'][name]:.1f}" for name in RETAINED)]]
    lines += [[method, *(percent(row[name]) for name in RETAINED)] for method, row in found["rows"].items()]
    return markdown(["method", *RETAINED], lines)


def intruders(found: Found) -> str:
    """Render counts beside forgetting, and the sweep."""
    lines = [
        [
            method,
            *(percent(row[name]) for name in ("accuracy", "forgetting")),
            f"{row['intruders']['mean']:.0f} of {10 * row['layers']['mean']:.0f}",
            percent(row["energy_share"]),
            f"{row['relative_norm']['mean']:.3f}",
        ]
        for method, row in found["rows"].items()
    ]
    counted = markdown(
        ["method", "accuracy", "forgetting", "intruders", "their share of energy", "size of ΔW to W"], lines
    )
    scaled = [
        [keep, *(f"{100 * found['mitigation'][control][keep][name]:.1f}" for control in CONTROLS for name in RETAINED)]
        for keep in found["mitigation"]["none"]
    ]
    header = [f"{side}: {name}" for side in CONTROLS.values() for name in RETAINED]
    return f"{counted}\nScaled down in `{found['mitigated']}`:\n\n{markdown(['λ', *header], scaled)}"


def spread(value: Mapping[str, float]) -> str:
    """Format ``mean ± spread`` of a number that is no fraction; three significant digits."""
    own = f" ± {value['std']:.2g}" if value["n"] > 1 else ""
    return f"{value['mean']:.3g}{own}"


CONTROLS = {"none": "intruders", "shrink": "all of ΔW shrunk as much"}
TITLES = {
    "lora_pro_step": "LoRA-Pro: the step against full fine-tuning's",
    "glad_sharpness": "GLAD: sharpness after training",
    "ggpo_sharpness": "GGPO and MGPO: sharpness, and the course of the training loss",
    "allora_optimizers": "ALLoRA: short training under two optimisers",
    "lisa_memory": "LISA: memory of a step at batch 4",
    "selection": "Flexora and DiffoRA: chosen against random places",
    "ba_lora_retention": "BA-LoRA: each penalty alone",
    "intruders": "Intruder dimensions and forgetting",
}
TABLES: dict[str, Callable[[Any], str]] = {
    "lora_pro_step": lora_pro_step,
    "glad_sharpness": glad_sharpness,
    "ggpo_sharpness": ggpo_sharpness,
    "allora_optimizers": allora_optimizers,
    "lisa_memory": lisa_memory,
    "selection": selection,
    "ba_lora_retention": ba_lora_retention,
    "intruders": intruders,
}
