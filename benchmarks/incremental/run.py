"""CoACT, its ablations and the baselines on sessions of emoji and of digits, three seeds each.

    python benchmarks/incremental/run.py                # an hour on one core; goes on if interrupted
    python benchmarks/incremental/run.py --data digits  # train only these, and write nothing

Recipes: configs/incremental/emoji_*.yaml. Emoji: 14 base sub-groups with 10 pictures each in the Fluent style, which
tiny-clip has never seen, then three sessions of 5 new ones with 5 pictures each. Digits: 4 base classes, then three
sessions of 2, with as many pictures. Each method's learning rate is chosen out of three on the first seed's validation
pictures. Heads compare cosines. Writes ``results.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vision_lowrank.engine.progress import say
from vision_lowrank.files import write_text
from vision_lowrank.studies.incremental import Study, study

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


def result(data: str) -> dict[str, Any]:
    """One study, whatever of it is missing run first."""
    recipes = [ROOT / "configs" / "incremental" / f"emoji_{method}.yaml" for method in METHODS]
    given = ("engine.tensorboard=false", "engine.checkpoint_every=0", *DATA[data])
    found = study(Study(recipes, ROOT / "runs" / "incremental" / f"{data}", given, rates=RATES), say)
    failed = [row for row in found["rows"] if "failed" in row]
    if failed:
        raise SystemExit(f"{failed[0]['method']}: {failed[0]['failed']}")
    return found | {"recipes": {name: Path(path).name for name, path in found["recipes"].items()}}


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, help="train only these, and write nothing")
    data = parser.parse_args().data
    studies = {name: result(name) for name in data or DATA}
    if data:
        return
    found = {
        "command": "python benchmarks/incremental/run.py",
        "environment": next(iter(studies.values()))["environment"],
        "studies": studies,
    }
    write_text(HERE / "results.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(HERE / "results.json")


if __name__ == "__main__":
    main()
