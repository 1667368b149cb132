"""Every adapter with every initialiser on the built-in emoji, 4 shots of the Fluent style.

    python benchmarks/catalogue/run.py                          # about two hours on two cores; goes on if interrupted
    python benchmarks/catalogue/run.py --methods lora,lora_xs   # only these, and nothing is written here

It is ``vision-lowrank compare`` with fixed settings: configs/fewshot/emoji_lora.yaml, 100 steps, three seeds, each
method at its own default size, its learning rate chosen on validation pictures. Writes ``results.json`` beside this
file. ``--jobs N`` trains in N processes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vision_lowrank.engine.progress import say
from vision_lowrank.files import write_text
from vision_lowrank.studies.columns import table
from vision_lowrank.studies.methods import Methods
from vision_lowrank.studies.processes import local
from vision_lowrank.studies.study import run_study
from vision_lowrank.studies.variants import entries

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RATES = (5e-4, 2e-3, 8e-3)
OVERRIDES = ("engine.steps=100", "engine.tensorboard=false", "engine.checkpoint_every=0")


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", help="adapters with commas between; all of them if not given")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args()
    recipe = ROOT / "configs" / "fewshot" / "emoji_lora.yaml"
    plan = Methods(recipe, entries(given.methods or "all", "all"), budget="defaults", rates=RATES)
    result = run_study(plan.study(ROOT / "runs" / "catalogue", OVERRIDES), local(given.jobs), say)
    for line in table(result)[1]:
        print("  ".join(line))
    if not given.methods:
        result |= {"command": "python benchmarks/catalogue/run.py", "recipe": str(recipe.relative_to(ROOT))}
        write_text(HERE / "results.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
