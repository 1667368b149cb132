"""Write the README's tables from the committed result JSONs: ``python benchmarks/render.py``; ``--check`` compares."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vision_lowrank.viz.plots import accuracy_by_shots
from vision_lowrank.viz.text import percent

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
NAMES = {"linear_probe": "linear probe", "lora": "LoRA", "block_lora": "Block-LoRA", "comp_lora": "Comp-LoRA"}
SETS = {
    "trained style (Fluent)": "test/fluent/accuracy",
    "other unseen style (OpenMoji)": "test/openmoji/accuracy",
    "retention: Noto": "retention/noto/accuracy",
    "retention: Twemoji": "retention/twemoji/accuracy",
}
BEGIN, END = "<!-- emoji_fewshot: made by benchmarks/render.py -->\n", "<!-- end -->"


def results() -> dict[str, Any]:
    """The committed results."""
    return json.loads((ROOT / "benchmarks" / "emoji_fewshot" / "results.json").read_text())


def accuracy_table(result: dict[str, Any]) -> str:
    """Accuracy by method and number of shots, the untrained model first."""
    lines = ["| shots | method | " + " | ".join(SETS) + " |", "|---|---|" + "---|" * len(SETS)]
    first = next(row for row in result["rows"] if row["method"] == "lora")
    lines.append("| 0 | zero-shot | " + " | ".join(percent(first["baseline"][name]) for name in SETS.values()) + " |")
    for row in result["rows"]:
        cells = [percent(row["metrics"][name]) for name in SETS.values()]
        lines.append(f"| {row['shots']} | {NAMES[row['method']]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cost_table(result: dict[str, Any]) -> str:
    """Parameters, step time and memory of each method at 4 shots."""
    seconds = result["step_seconds"]
    lines = ["| method | trainable parameters | step | ratio to LoRA | peak memory |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        if row["shots"] == 4:
            step = seconds[row["method"]]
            lines.append(
                f"| {NAMES[row['method']]} | {row['trainable_parameters']:,} | {1000 * step:.0f} ms | "
                f"{step / seconds['lora']:.2f} | {row['peak_memory'] / 2**20:.0f} MiB |"
            )
    return "\n".join(lines)


def section(result: dict[str, Any]) -> str:
    """Everything between the markers."""
    environment = result["environment"]
    where = f"{environment['processor']}, {environment['cores']} cores, torch {environment['packages']['torch']}"
    return f"{accuracy_table(result)}\n\n{cost_table(result)}\n\nMade by `{result['command']}` on {where}.\n"


def figure(result: dict[str, Any]) -> str:
    """Accuracy on the trained style against shots, as SVG."""
    name = SETS["trained style (Fluent)"]
    rows = [
        {"method": NAMES[row["method"]], "shots": row["shots"], **{k: row["metrics"][name][k] for k in ("mean", "std")}}
        for row in result["rows"]
    ]
    return accuracy_by_shots(rows, title="accuracy on Fluent, unseen in pretraining")


def main() -> None:
    """Write, or compare with ``--check``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the README is not what the JSON says")
    check = parser.parse_args().check
    text = README.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    result = results()
    new = head + BEGIN + section(result) + END + tail
    if check:
        sys.exit(0 if new == text else "README.md differs from benchmarks/emoji_fewshot/results.json: run render.py")
    README.write_text(new)
    (ROOT / "docs" / "images" / "emoji_fewshot.svg").write_text(figure(result))


if __name__ == "__main__":
    main()
