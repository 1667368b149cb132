"""Every training rule, regulariser and selection on emoji: few-shot, base-to-novel, and what a step costs.

    python benchmarks/training_rules/run.py                       # about an hour on two cores; goes on if interrupted
    python benchmarks/training_rules/run.py --methods lora glad   # train only these, and write nothing

Recipes: configs/fewshot/emoji_*.yaml. Few-shot: 4 pictures per class, the learning rate chosen per method on the first
seed's validation pictures. Base-to-novel: 16 pictures of each class of the first half, at the same rate. Three seeds.
``--jobs N`` trains in N processes. Step times are of whole steps, all methods in turns in one run, as ratios to LoRA's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vision_lowrank.config import RunConfig, environment, load_config
from vision_lowrank.engine.progress import say
from vision_lowrank.files import write_text
from vision_lowrank.studies.columns import complete_rows
from vision_lowrank.studies.launch import Launcher
from vision_lowrank.studies.processes import local
from vision_lowrank.studies.study import Study, run_studies
from vision_lowrank.studies.timing import step_times
from vision_lowrank.studies.variants import Variant

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "training_rules"
RATES = {"lora_pro": (5e-5, 2e-4, 8e-4), "lisa": (2e-5, 1e-4, 5e-4), "full": (2e-5, 1e-4, 5e-4)}
OTHER_RATES = (5e-4, 1e-3, 2e-3)
OVERRIDES = ("engine.tensorboard=false", "engine.checkpoint_every=0")
# Method -> recipe and what is changed in it. Controls stand beside what they control.
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lora": ("lora", ()),
    "lora, no dropout": ("lora", ("adapter.dropout=0",)),
    "lora, twice the steps": ("lora", ("engine.steps=400",)),
    "glad": ("glad", ()),
    "sam": ("glad", ("rule.strength=1.0",)),
    "lora_pro": ("lora_pro", ()),
    "allora": ("allora", ()),
    "allora, update": ("allora", ("rule.apply=update",)),
    "ggpo": ("ggpo", ()),
    "mgpo": ("mgpo", ()),
    "lora+pissa": ("lora", ("adapter.dropout=0", "initializer={type: pissa}")),
    "ba_lora": ("ba_lora", ()),
    "ba_lora, standardized": ("ba_lora", ("regularizer.dr_space=standardized",)),
    "flexora": ("flexora", ()),
    "diffora": ("diffora", ()),
    "lisa": ("lisa", ()),
    "full": ("full", ()),
}


def config(method: str, *overrides: str) -> RunConfig:
    """Load a method's recipe."""
    recipe, changes = METHODS[method]
    return load_config(ROOT / "configs" / "fewshot" / f"emoji_{recipe}.yaml", (*OVERRIDES, *changes, *overrides))


def rows(methods: Sequence[str], launch: Launcher) -> list[dict[str, Any]]:
    """Run both protocols of each method; the second takes the learning rates of the first."""
    few = [Variant(name, config(name), rates=RATES.get(METHODS[name][0], OTHER_RATES)) for name in methods]
    half = ("task.protocol=base_to_novel", "task.shots=16")
    novel = [Variant(each.name, config(each.name, *half), follows=each) for each in few]
    studies = [Study(RUNS / "fewshot", "few-shot", few), Study(RUNS / "base_to_novel", "base to novel", novel)]
    pairs = zip(*map(complete_rows, run_studies(studies, launch, say)), strict=True)
    kept = ("method", "lr", "metrics", "trained_parameters", "peak_memory", "validation", "baseline")
    return [
        {key: first[key] for key in kept}
        | {"base_to_novel": second["metrics"], "base_to_novel_baseline": second["baseline"]}
        for first, second in pairs
    ]


def costs() -> dict[str, dict[str, float]]:
    """Measure a step of every method in seconds and its ratio to LoRA's, all in turns."""
    times = dict(zip(METHODS, step_times([config(method) for method in METHODS], 12), strict=True))
    return {
        method: {
            "step_seconds": median(own),
            "ratio": median(one / other for one, other in zip(own, times["lora"], strict=True)),
        }
        for method, own in times.items()
    }


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="train only these, and write nothing")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args()
    found = rows(given.methods or list(METHODS), local(given.jobs))
    if given.methods:
        return
    result = {
        "command": "python benchmarks/training_rules/run.py",
        "environment": environment(),
        "rows": found,
        "costs": costs(),
    }
    write_text(HERE / "results.json", json.dumps(result, indent=1) + "\n")
    print(HERE / "results.json")


if __name__ == "__main__":
    main()
