"""Whether and where on both test sets, by kind of edit, costs, degradations, and what files alone give away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lowrank.viz.text import markdown, percent

Result = Mapping[str, Any]
Metrics = Mapping[str, Mapping[str, float]]
NAMES = {
    "manipshield": "ManipShield",
    "pair_contrast": "contrast of pairs",
    "no_contrast": "without contrast",
    "no_lds": "without layer selection",
    "frozen": "frozen tower",
    "full": "full fine-tuning",
    "linear": "linear head",
    "ela": "error levels",
    "noise": "noise residual",
}
# Columns of the main table; every editor's recall is in the editors' table.
WHETHER = {
    "AUC": "auc",
    "balanced accuracy": "balanced_accuracy",
    "accuracy, 1:1": "equal_mix/accuracy",
    "recall at 5 % false alarms": "tpr_at_fpr_5",
    "false alarms": "false_alarm_rate",
    "ECE, 1:1": "equal_mix/ece",
    "ECE, as it is": "ece",
}
WHERE = {
    "pixel F1": "pixel_f1",
    "pixel IoU": "pixel_iou",
    "pixel AUC": "pixel_auc",
    "false maps": "pixel_false_localisation",
    "box AP50": "box_ap50",
    "box AP": "box_ap",
    "union IoU": "box_union_iou",
    "false boxes": "box_false_localisation",
    "cue micro F1": "cue_micro_f1",
    "cue macro F1": "cue_macro_f1",
}
CONSTANT = {"mean box": "constant_box", "whole picture": "full_box", "most frequent cue": "most_frequent"}
ROBUSTNESS = {"AUC": "auc", "balanced accuracy": "balanced_accuracy", "false alarms": "false_alarm_rate",
              "pixel F1": "pixel_f1", "box AP50": "box_ap50"}  # fmt: skip
SETS = {"seen": "kinds of edit seen in training", "unseen": "kinds of edit never seen in training"}


def render_tables(result: Result) -> str:
    """Render whether and where on both test sets, by editor, costs, robustness, and what files alone give away."""
    rows = _rows(result)
    parts = [
        f"**{title}: {question}**\n\n{_by_method(rows, name, columns)}"
        for name, title in SETS.items()
        for question, columns in (("whether", WHETHER), ("where and what", WHERE))
    ]
    parts.append(f"**AUC by kind of edit, each against all real pictures**\n\n{editors(result)}")
    parts.append(f"**cost**\n\n{costs(result)}")
    parts += [
        f"**ManipShield under degradations, {title}**\n\n{robustness(result, name)}" for name, title in SETS.items()
    ]
    parts.append(f"**AUC of metadata alone**\n\n{audit(result)}")
    return "\n".join(parts)


def editors(result: Result) -> str:
    """Render AUC of every kind of edit by method, and its recall by ManipShield at its own threshold."""
    rows, lines = _rows(result), []
    first = rows[NAMES["manipshield"]]
    for name in SETS:
        start, end = f"{name}/editor/", "/auc"
        for metric in sorted(key for key in first if key.startswith(start) and key.endswith(end)):
            editor = metric.removeprefix(start).removesuffix(end)
            recall = percent(first[f"{start}{editor}/recall"])
            lines.append([name, editor, *(_cell(metrics, metric) for metrics in rows.values()), recall])
    return markdown(["set", "kind of edit", *rows, "ManipShield's recall"], lines)


def costs(result: Result) -> str:
    """Render parameters, step time and memory, learning rate, and the layer that is read, per seed."""
    lines = []
    for row in result["rows"]:
        cost = result["costs"][row["method"]]
        layers = ", ".join(map(str, row["layers"]))
        lines.append(
            [
                NAMES[row["method"]],
                f"{row['lr']:g}",
                f"{row['trained_parameters']:,}",
                f"{1000 * cost['step_seconds']:.0f} ms",
                f"{cost['ratio']:.2f}",
                f"{row['peak_memory'] / 2**20:.0f} MiB",
                f"{layers} of {row['of_layers']}",
            ]
        )
    header = ["method", "lr", "trained parameters", "step", "ratio to ManipShield", "memory, all layers", "layers read"]
    return markdown(header, lines)


def robustness(result: Result, name: str) -> str:
    """Render a line per degradation, the clean pictures first."""
    found = result["robustness"]["sets"][name]
    lines = [[each, *(_cell(metrics, metric) for metric in ROBUSTNESS.values())] for each, metrics in found.items()]
    pictures = result["robustness"]["pictures"][name]
    return f"{markdown(['degradation', *ROBUSTNESS], lines)}\n{pictures} pictures.\n"


def audit(result: Result) -> str:
    """Render the AUC of a forest on the files' metadata, by set and family."""
    found = result["baselines"]["audit"]
    families = list(next(iter(found.values()))["by_family"])
    lines = [
        [
            name,
            f"{row['auc']:.3f} [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]",
            *(f"{row['by_family'][family]:.3f}" for family in families),
        ]
        for name, row in found.items()
    ]
    return markdown(["set", "all [95 %]", *families], lines)


def _rows(result: Result) -> dict[str, Metrics]:
    """Return name -> metrics: the classical baselines, the untrained model, and every method."""
    first = next(row for row in result["rows"] if row["method"] == "manipshield")
    classical = {NAMES[name]: each["metrics"] for name, each in result["baselines"]["methods"].items()}
    return {
        **classical,
        "untrained tower": first["untrained"],
        **{NAMES[row["method"]]: row["metrics"] for row in result["rows"]},
    }


def _by_method(rows: Mapping[str, Metrics], name: str, columns: Mapping[str, str]) -> str:
    """Render a line per method; where places are asked for, also for the constants that ignore the picture."""
    known = {metric for metrics in rows.values() for metric in metrics}
    names = {title: f"{name}/{metric}" for title, metric in columns.items() if f"{name}/{metric}" in known}
    lines = [[row, *(_cell(metrics, metric) for metric in names.values())] for row, metrics in rows.items()]
    first = rows[NAMES["manipshield"]]
    for title, constant in CONSTANT.items():
        cells = [_cell(first, metric.replace("/", f"/{constant}/", 1)) for metric in names.values()]
        if set(cells) != {"-"}:
            lines.insert(0, [title, *cells])
    return markdown(["method", *names], [line for line in lines if set(line[1:]) != {"-"}])


def _cell(metrics: Metrics, name: str) -> str:
    return percent(metrics[name]) if name in metrics else "-"
