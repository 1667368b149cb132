"""Every training rule, regulariser and selection on emoji: few-shot, base-to-novel, and what a step costs.

    python benchmarks/training_rules/run.py                       # about an hour on two cores; goes on if interrupted
    python benchmarks/training_rules/run.py --methods lora glad   # train only these, and write nothing

Recipes: configs/fewshot/emoji_*.yaml. Few-shot: 4 pictures per class, the learning rate chosen per method on the first
seed's validation pictures. Base-to-novel: 16 pictures of each class of the first half, at the same rate. Three seeds.
With ``--methods`` two processes can share the work before the full command collects it and writes ``results.json``
beside this file. Step times are of whole steps, all methods in turns in one run, as ratios to LoRA's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from vision_lowrank.config import RunConfig, environment, load_config
from vision_lowrank.engine.progress import say
from vision_lowrank.files import write_text
from vision_lowrank.studies.comparison import Sweep, compare, step_times
from vision_lowrank.studies.variants import Entry

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
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


def sweep(method: str, folder: str, *overrides: str) -> Sweep:
    """One method's recipe as a comparison with itself."""
    recipe, changes = METHODS[method]
    path = ROOT / "configs" / "fewshot" / f"emoji_{recipe}.yaml"
    given = (*OVERRIDES, *changes, *overrides)
    place = ROOT / "runs" / "training_rules" / folder / method.replace(", ", "-").replace(" ", "-")
    rates = RATES.get(recipe, OTHER_RATES)
    return Sweep(path, [Entry.of(load_config(path, given))], place, given, rates=rates)


def rows(methods: Sequence[str]) -> list[dict[str, Any]]:
    """Both protocols of each method."""
    found = []
    for method in methods:
        few = compare(sweep(method, "fewshot"), say)
        [first] = few["rows"]
        if "failed" in first:
            raise SystemExit(f"{method}: {first['failed']}")
        half = replace(sweep(method, "base_to_novel", "task.protocol=base_to_novel", "task.shots=16"), rates=())
        half = replace(half, overrides=(*half.overrides, f"engine.lr={first['lr']}"))
        novel = compare(half, say)
        kept = ("lr", "metrics", "trained_parameters", "peak_memory", "validation")
        found.append(
            {
                "method": method,
                **{key: first[key] for key in kept},
                "baseline": few["baseline"],
                "base_to_novel": novel["rows"][0]["metrics"],
                "base_to_novel_baseline": novel["baseline"],
            }
        )
    return found


def costs() -> dict[str, dict[str, float]]:
    """Seconds of a step of every method and the ratio to LoRA's, all in turns."""
    configs: list[RunConfig] = [sweep(method, "fewshot").base for method in METHODS]
    times = dict(zip(METHODS, step_times(configs, 12), strict=True))
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
    methods = parser.parse_args().methods
    found = rows(methods or list(METHODS))
    if methods:
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
