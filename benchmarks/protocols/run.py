"""Base-to-novel and transfer on built-in data: LoRA, Block-LoRA, Comp-LoRA and GLAD, three seeds each.

    python benchmarks/protocols/run.py                            # half an hour on two cores; goes on if interrupted
    python benchmarks/protocols/run.py --methods lora block_lora  # train only these, and write nothing

Recipes and learning rates: configs/fewshot/emoji_*.yaml; the rates were chosen on validation pictures
(benchmarks/emoji_fewshot/sweep.json), GLAD takes LoRA's. All training is on 16 pictures per class in the Fluent style;
1 to 16 shots of the same methods are in benchmarks/emoji_fewshot.

* ``base_to_novel``: the first half of the sub-groups trains; the others are recognised by their prompts.
* ``transfer``: all sub-groups train; then, without further training, the three other styles (domains), digits and
  the emoji's groups (other data sets, prompts of their own).

With ``--methods`` two processes can share the work before the full command collects it and writes ``results.json``.
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
from vision_lowrank.studies.comparison import Sweep, compare
from vision_lowrank.studies.grid import UNTRAINED
from vision_lowrank.studies.variants import Entry

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


def rows(protocol: str, methods: Sequence[str]) -> list[dict[str, Any]]:
    """One row per method, the untrained model's first."""
    found = []
    for method in methods:
        path = ROOT / "configs" / "fewshot" / f"emoji_{method}.yaml"
        given = ("engine.tensorboard=false", "engine.checkpoint_every=0", f"task.shots={SHOTS}", *PROTOCOLS[protocol])
        folder = ROOT / "runs" / "protocols" / protocol
        result = compare(Sweep(path, [Entry.of(load_config(path, given))], folder, given), say)
        [row] = result["rows"]
        if "failed" in row:
            raise SystemExit(f"{method}: {row['failed']}")
        cell = {"data": "emoji", "shots": SHOTS}
        if not found:
            found.append({**cell, "method": UNTRAINED, "metrics": result["baseline"]})
        kept = {key: row[key] for key in ("metrics", "lr", "trained_parameters", "train_hashes")}
        found.append({**cell, "method": method, **kept})
    return found


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="train only these, and write nothing")
    methods = parser.parse_args().methods
    found = {protocol: rows(protocol, methods or METHODS) for protocol in PROTOCOLS}
    if methods:
        return
    result = {"command": "python benchmarks/protocols/run.py", "environment": environment(), "protocols": found}
    write_text(HERE / "results.json", json.dumps(result, indent=1) + "\n")
    print(HERE / "results.json")


if __name__ == "__main__":
    main()
