"""Base-to-novel and transfer on built-in data: LoRA, Block-LoRA, Comp-LoRA and GLAD, three seeds each.

    python benchmarks/protocols/run.py                            # half an hour on two cores; goes on if interrupted
    python benchmarks/protocols/run.py --methods lora block_lora  # train only these, and write nothing

Recipes and learning rates: configs/fewshot/emoji_*.yaml; the rates were chosen on validation pictures
(benchmarks/emoji_fewshot/sweep.json), GLAD takes LoRA's. All training is on 16 pictures per class in the Fluent style;
1 to 16 shots of the same methods are in benchmarks/emoji_fewshot.

* ``base_to_novel``: the first half of the sub-groups trains; the others are recognised by their prompts.
* ``transfer``: all sub-groups train; then, without further training, the three other styles (domains), digits and
  the emoji's groups (other data sets, prompts of their own).

Writes ``results.json`` beside this file; ``--jobs N`` trains in N processes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_lowrank.config import environment, load_config
from vision_lowrank.engine.progress import say
from vision_lowrank.files import write_text
from vision_lowrank.studies.columns import complete_rows
from vision_lowrank.studies.launch import Launcher
from vision_lowrank.studies.processes import local
from vision_lowrank.studies.study import Study, run_studies
from vision_lowrank.studies.variants import Variant

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
METHODS = ("lora", "block_lora", "comp_lora", "glad")
STYLES = "[fluent, openmoji, noto, twemoji]"
OTHERS = "[{type: digits}, {type: emoji, label: group, train_style: fluent, test_styles: [fluent]}]"
SHOTS = 16
# Protocol -> what is changed in the recipes.
PROTOCOLS = {
    "base_to_novel": ("task.protocol=base_to_novel",),
    "transfer": (f"data.test_styles={STYLES}", "data.retention_styles=[]", f"task.transfer={OTHERS}"),
}


def study(protocol: str, methods: Sequence[str]) -> Study:
    """Return a protocol's study."""
    given = ("engine.tensorboard=false", "engine.checkpoint_every=0", f"task.shots={SHOTS}", *PROTOCOLS[protocol])
    recipes = {name: ROOT / "configs" / "fewshot" / f"emoji_{name}.yaml" for name in methods}
    variants = [Variant(name, load_config(path, given)) for name, path in recipes.items()]
    return Study(ROOT / "runs" / "protocols" / protocol, protocol, variants)


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per method, the untrained model's first."""
    cell = {"data": "emoji", "shots": SHOTS}
    found: list[dict[str, Any]] = [{**cell, "method": "zero-shot", "metrics": result["baseline"]}]
    for row in complete_rows(result):
        kept = {key: row[key] for key in ("method", "metrics", "lr", "trained_parameters")}
        found.append({**cell, **kept, "train_hashes": [facts["train_hash"] for facts in row["facts"].values()]})
    return found


def protocols(methods: Sequence[str], launch: Launcher) -> dict[str, list[dict[str, Any]]]:
    """Run all protocols and return protocol -> rows."""
    results = run_studies([study(protocol, methods) for protocol in PROTOCOLS], launch, say)
    return {protocol: rows(result) for protocol, result in zip(PROTOCOLS, results, strict=True)}


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="train only these, and write nothing")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args()
    found = protocols(given.methods or METHODS, local(given.jobs))
    if given.methods:
        return
    result = {"command": "python benchmarks/protocols/run.py", "environment": environment(), "protocols": found}
    write_text(HERE / "results.json", json.dumps(result, indent=1) + "\n")
    print(HERE / "results.json")


if __name__ == "__main__":
    main()
