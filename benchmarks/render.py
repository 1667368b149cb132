"""Write the documents' tables from the committed JSON: ``python benchmarks/render.py``; ``--check`` compares."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from manipulation import tables as manipulation
from training_rules.claims.tables import tables as claims

from vision_lowrank.studies import columns, figures, grid
from vision_lowrank.viz.plots import accuracy_by_shots
from vision_lowrank.viz.text import markdown, percent

ROOT = Path(__file__).parents[1]
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
Result = Mapping[str, Any]


def accuracy_table(result: Result) -> str:
    """Accuracy by method and number of shots, the untrained model first."""
    first = next(row for row in result["rows"] if row["method"] == "lora")
    lines = [["0", "zero-shot", *(percent(first["baseline"][name]) for name in SETS.values())]]
    for row in result["rows"]:
        lines.append([str(row["shots"]), NAMES[row["method"]], *(percent(row["metrics"][n]) for n in SETS.values())])
    return markdown(["shots", "method", *SETS], lines)


def cost_table(result: Result) -> str:
    """Parameters, step time and memory of each method at 4 shots."""
    seconds, lines = result["step_seconds"], []
    for row in result["rows"]:
        if row["shots"] == 4:
            step = seconds[row["method"]]
            cost = [f"{1000 * step:.0f} ms", f"{step / seconds['lora']:.2f}", f"{row['peak_memory'] / 2**20:.0f} MiB"]
            lines.append([NAMES[row["method"]], f"{row['trainable_parameters']:,}", *cost])
    return markdown(["method", "trainable parameters", "step", "ratio to LoRA", "peak memory"], lines)


def emoji_fewshot(result: Result) -> str:
    """Accuracies and costs of the main comparison."""
    return f"{accuracy_table(result)}\n{cost_table(result)}"


def emoji_fewshot_figure(result: Result) -> str:
    """Accuracy on the trained style against shots, as SVG."""
    name = SETS["trained style (Fluent)"]
    rows = [
        {"method": NAMES[row["method"]], "shots": row["shots"], **{k: row["metrics"][name][k] for k in ("mean", "std")}}
        for row in result["rows"]
    ]
    return accuracy_by_shots(rows, title="accuracy on Fluent, unseen in pretraining")


def catalogue(result: Result) -> str:
    """Every adapter with every initialiser, and why some pairs do not exist."""
    header, lines = columns.table(result)
    failed = [row for row in result["rows"] if "failed" in row]
    ran = [line for line in lines if line[0] not in {row["method"] for row in failed}]
    reasons: dict[str, list[str]] = {}
    for row in failed:
        reasons.setdefault(row["failed"], []).append(row["method"])
    refused = "".join(f"* {', '.join(names)}: {reason}\n" for reason, names in reasons.items())
    return f"{markdown(header, ran)}\nLeft out, with the message that a user gets:\n\n{refused}"


def step_cost(result: Result) -> str:
    """One table per model and batch, cheapest first."""
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


def init_cost(result: Result) -> str:
    """Time and memory of each initialiser."""
    lines = [
        [f"`{name}`", f"{row['seconds']:.1f} s", f"{row['peak_bytes'] / 2**20:.0f} MiB"]
        for name, row in result["rows"].items()
    ]
    return markdown(["initialiser", "time", "peak memory beside the model"], lines)


def training_rules(result: Result) -> str:
    """Every rule, regulariser and selection: both protocols, and what a step costs."""
    novel = {
        "base": "test/fluent/accuracy",
        "novel": "transfer/novel-fluent/accuracy",
        "harmonic mean": "harmonic_mean/fluent/accuracy",
    }
    first = result["rows"][0]
    untrained = [
        *(percent(first["baseline"][name]) for name in SETS.values()),
        *(percent(first["base_to_novel_baseline"][name]) for name in novel.values()),
    ]
    lines = [["untrained", "", *untrained, "0", "", ""]]
    for row in result["rows"]:
        accuracies = [percent(row["metrics"][name]) for name in SETS.values()]
        accuracies += [percent(row["base_to_novel"][name]) for name in novel.values()]
        cost = [f"{row['trained_parameters']:,}", f"{result['costs'][row['method']]['ratio']:.2f}"]
        lines.append([row["method"], f"{row['lr']:g}", *accuracies, *cost, f"{row['peak_memory'] / 2**20:.0f}"])
    short = [name.removeprefix("test/").removesuffix("/accuracy") for name in SETS.values()]
    header = ["method", "lr", *short, *novel, "trained parameters", "step (ratio)", "step memory (MiB)"]
    return markdown(header, lines)


def protocols(result: Result) -> str:
    """One table per protocol."""
    parts = []
    for protocol, rows in result["protocols"].items():
        for title, header, lines in grid.tables({"task": "fewshot", "protocol": protocol, "rows": rows}):
            parts.append(f"**{title}**\n\n{markdown(header, lines)}")
    return "\n".join(parts)


def augmentation(result: Result) -> str:
    """Accuracy by augmentation for each data set and number of shots; and how well features separate classes."""
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


def incremental(result: Result) -> str:
    """Both tables of every study."""
    parts = []
    for name, study in result["studies"].items():
        for title, header, lines in columns.tables(study):
            parts.append(f"**{name}: {title}**\n\n{markdown(header, lines)}")
    return "\n".join(parts)


def incremental_figure(result: Result) -> str:
    """Accuracy after every session of emoji, as SVG."""
    return figures.series_figure(result["studies"]["emoji"])


class Section(NamedTuple):
    """What stands between a pair of markers in a document, made from ``benchmarks/NAME/results.json``."""

    name: str
    document: str
    text: Callable[[Result], str]
    figure: Callable[[Result], str] | None = None

    @property
    def path(self) -> Path:
        """The committed results."""
        return ROOT / "benchmarks" / self.name / "results.json"

    @property
    def result(self) -> Result:
        """What they hold."""
        return json.loads(self.path.read_text())

    def filled(self, document: str) -> str:
        """The document with this section made anew; as it is where there is neither a place for it nor a result."""
        begin, end = f"<!-- {self.name}: made by benchmarks/render.py -->\n", "<!-- end -->"
        if begin not in document and not self.path.is_file():
            return document
        head, _, rest = document.partition(begin)
        _, _, tail = rest.partition(end)
        result = self.result
        later = result.get("later")
        made = f"Made by `{result['command']}` on {where(result)}."
        made += f" Added later by `{later['command']}`: {', '.join(later['methods'])}." if later else ""
        return f"{head}{begin}{self.text(result)}\n{made}\n{end}{tail}"


def where(result: Result) -> str:
    """Machine and version."""
    environment = result.get("environment") or next(iter(result["entries"].values()))["environment"]
    return f"{environment['processor']}, {environment['cores']} cores, torch {environment['packages']['torch']}"


SECTIONS = (
    Section("emoji_fewshot", "README.md", emoji_fewshot, emoji_fewshot_figure),
    Section("catalogue", "docs/benchmarks.md", catalogue, figures.pareto_figure),
    Section("step_cost", "docs/benchmarks.md", step_cost),
    Section("init_cost", "docs/benchmarks.md", init_cost),
    Section("training_rules", "docs/benchmarks.md", training_rules),
    Section("training_rules/claims", "docs/benchmarks.md", claims),
    Section("protocols", "docs/benchmarks.md", protocols),
    Section("augmentation", "docs/benchmarks.md", augmentation),
    Section("incremental", "docs/benchmarks.md", incremental, incremental_figure),
    Section("manipulation", "docs/benchmarks.md", manipulation.study),
    Section("manipulation/throughput", "docs/benchmarks.md", manipulation.throughput),
)


def main() -> None:
    """Write, or compare with ``--check``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a document is not what the JSON says")
    check = parser.parse_args().check
    for section in SECTIONS:
        path = ROOT / section.document
        text = path.read_text()
        new = section.filled(text)
        if check and new != text:
            sys.exit(f"{section.document} differs from benchmarks/{section.name}/results.json: run render.py")
        if not check:
            path.write_text(new)
            if section.figure:
                (ROOT / "docs" / "images" / f"{section.name}.svg").write_text(section.figure(section.result))


if __name__ == "__main__":
    main()
