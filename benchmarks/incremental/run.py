"""CoACT, its ablations and the baselines on sessions of emoji and of digits, three seeds each.

    python benchmarks/incremental/run.py                # an hour on one core; goes on if interrupted
    python benchmarks/incremental/run.py --data digits  # train only these, and write nothing

It is ``vision-lowrank incremental`` with fixed settings. Recipes: configs/incremental/emoji_*.yaml. Emoji: 14 base
sub-groups with 10 pictures each in the Fluent style, which tiny-clip has never seen, then three sessions of 5 new ones
with 5 pictures each. Digits: 4 base classes, then three sessions of 2, with as many pictures. Each method's learning
rate is chosen out of three on the first seed's validation pictures. Heads compare cosines. Writes ``results.json``
beside this file; ``--jobs N`` trains in N processes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vision_lowrank.engine.progress import say
from vision_lowrank.files import write_text
from vision_lowrank.studies.columns import complete_rows
from vision_lowrank.studies.launch import Launcher
from vision_lowrank.studies.processes import local
from vision_lowrank.studies.recipes import Recipes
from vision_lowrank.studies.study import Study, run_studies

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RATES = (1e-2, 3e-2, 1e-1)
COACT = ("coact", "coact_no_teacher", "coact_no_cft", "coact_no_consistency", "coact_paper")
METHODS = ("prototype", "linear", "lora", "lora_distilled", "full", *COACT)
DIGITS = (
    "data={type: digits}",
    "task.protocol={name: fscit, base: 4, way: 2, base_shots: 10, shots: 5, val_shots: 10}",
)
DATA = {"emoji": (), "digits": DIGITS}


def study(data: str, methods: Sequence[str]) -> Study:
    """Return the study of all methods on one data set."""
    recipes = [ROOT / "configs" / "incremental" / f"emoji_{method}.yaml" for method in methods]
    given = ("engine.tensorboard=false", "engine.checkpoint_every=0", *DATA[data])
    found = Recipes(recipes, RATES).study(ROOT / "runs" / "incremental" / data, given)
    names = {variant.name: path.name for variant, path in zip(found.variants, recipes, strict=True)}
    return replace(found, title="class-incremental learning", facts={**found.facts, "recipes": names})


def studies(data: Sequence[str], methods: Sequence[str], launch: Launcher) -> dict[str, Any]:
    """Return what each study finds, whatever of it is missing run first."""
    results = dict(zip(data, run_studies([study(name, methods) for name in data], launch, say), strict=True))
    return {name: {**result, "rows": complete_rows(result)} for name, result in results.items()}


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, help="train only these, and write nothing")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="train only these, and write nothing")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args()
    found = studies(given.data or list(DATA), given.methods or METHODS, local(given.jobs))
    if given.data or given.methods:
        return
    result = {
        "command": "python benchmarks/incremental/run.py",
        "environment": next(iter(found.values()))["environment"],
        "studies": found,
    }
    write_text(HERE / "results.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(HERE / "results.json")


if __name__ == "__main__":
    main()
