"""What the papers of the training rules claim, measured directly on tiny-clip and the built-in emoji.

    python benchmarks/training_rules/claims/run.py                        # under half an hour on one core
    python benchmarks/training_rules/claims/run.py --only lisa_memory     # this claim alone, if it is missing
    python benchmarks/training_rules/claims/run.py --steps 6              # a trial: one seed, prints, writes nothing

Recipes: configs/fewshot/emoji_*.yaml at their own learning rates, but of 80 steps. One entry per claim goes to
``results.json`` beside this file as soon as it is there; an entry that is there is kept. Runs that were trained are
kept in ``runs/training_rules_claims``. Each file beside this one says what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from allora_optimizers import allora_optimizers
from ba_lora_retention import ba_lora_retention
from flatness import ggpo_sharpness, glad_sharpness
from intruder_dimensions import intruders
from lisa_memory import lisa_memory
from lora_pro_step import lora_pro_step
from selections import selection
from shared import Budget

from vision_lowrank.config import environment
from vision_lowrank.engine.progress import say
from vision_lowrank.files import write_text

OUT = Path(__file__).parent / "results.json"
COMMAND = "python benchmarks/training_rules/claims/run.py"
CLAIMS: dict[str, Callable[[Budget], Any]] = {
    "lora_pro_step": lora_pro_step,
    "glad_sharpness": glad_sharpness,
    "ggpo_sharpness": ggpo_sharpness,
    "allora_optimizers": allora_optimizers,
    "lisa_memory": lisa_memory,
    "selection": selection,
    "ba_lora_retention": ba_lora_retention,
    "intruders": intruders,
}


def main() -> None:
    """Measure what is missing, and write the JSON after each claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CLAIMS, default=list(CLAIMS), help="these claims alone")
    parser.add_argument("--steps", type=int, help="a trial of this length with one seed, printed and not written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # many small steps: a second thread gains little, and timings stay comparable
    if arguments.steps:
        trial = Budget(arguments.steps, Budget().seeds[:1])
        print(json.dumps({name: CLAIMS[name](trial) for name in arguments.only}, indent=1))
        return
    result: dict[str, Any] = {"command": COMMAND, "environment": environment() | {"threads": 1}, "entries": {}}
    if OUT.is_file():
        result["entries"] = json.loads(OUT.read_text(encoding="utf-8"))["entries"]
    for name in arguments.only:
        if name in result["entries"]:
            continue
        say(name)
        started = time.perf_counter()
        found = CLAIMS[name](Budget())
        result["entries"][name] = {"minutes": (time.perf_counter() - started) / 60, "found": found}
        write_text(OUT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(OUT)


if __name__ == "__main__":
    main()
