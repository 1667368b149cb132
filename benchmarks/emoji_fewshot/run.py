"""Few-shot on emoji in styles that tiny-clip has never seen: all numbers of the README's table.

    python benchmarks/emoji_fewshot/run.py            # about half an hour on two cores; resumes if interrupted
    python benchmarks/emoji_fewshot/run.py --sweep    # the learning rates, chosen on validation pictures

Writes ``results.json`` (or ``sweep.json``) beside this file. Training is on the Fluent style; the test concepts are
never trained on. Recipes: configs/fewshot/emoji_*.yaml. With ``--methods`` or ``--shots`` only these are
trained and nothing is written, so that two processes can share the work before the full command collects it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vision_lowrank.config import RunConfig, environment, load_config
from vision_lowrank.files import write_text
from vision_lowrank.studies.comparison import step_times
from vision_lowrank.studies.run import run

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "fewshot"
METHODS = ("linear_probe", "lora", "block_lora", "comp_lora", "glad")
SHOTS = (1, 2, 4, 8, 16)
RATES = dict.fromkeys(METHODS, ("5.0e-4", "1.0e-3", "2.0e-3")) | {"linear_probe": ("3.0e-3", "1.0e-2", "3.0e-2")}
ROUNDS = 30


def recipe(method: str, shots: int, *overrides: str) -> RunConfig:
    """The committed recipe of `method` with another number of shots."""
    common = [f"task.shots={shots}", f"name={method}-{shots}", "out=runs/emoji_fewshot", "engine.tensorboard=false"]
    return load_config(CONFIGS / f"emoji_{method}.yaml", [*common, *overrides])


def benchmark(methods: Sequence[str], shots_list: Sequence[int]) -> dict[str, Any]:
    """Every method and number of shots, three seeds; and the cost of a step, all methods alternated."""
    rows = []
    for shots in shots_list:
        for method in methods:
            result = run(recipe(method, shots))
            first = result["seeds"]["1"]
            rows.append(
                {
                    "method": method,
                    "shots": shots,
                    "baseline": result["baseline"],
                    "metrics": result["metrics"],
                    "trainable_parameters": first["facts"]["trainable_parameters"],
                    "peak_memory": first["cost"]["peak_memory"],
                    "train_hashes": {seed: each["facts"]["train_hash"] for seed, each in result["seeds"].items()},
                    "test_hashes": first["facts"]["test_hashes"],
                }
            )
    return {"rows": rows, "step_seconds": step_seconds() if tuple(methods) == METHODS else {}}


def step_seconds(shots: int = 4) -> dict[str, float]:
    """Median time of forward and backward of one batch, the methods taking turns."""
    times = step_times([recipe(method, shots) for method in METHODS], ROUNDS)
    return {method: median(values) for method, values in zip(METHODS, times, strict=True)}


def sweep(methods: Sequence[str], shots_list: Sequence[int]) -> dict[str, Any]:
    """Validation accuracy (never test) of each learning rate, seed 1."""
    rows, shots = [], 4
    for method in methods:
        for rate in RATES[method]:
            overrides = (f"engine.lr={rate}", "task.seeds=[1]", f"name=sweep-{method}-{rate}")
            result = run(recipe(method, shots, *overrides))
            rows.append(
                {"method": method, "lr": float(rate), "val_accuracy": result["metrics"]["val/accuracy"]["mean"]}
            )
            print(rows[-1])
    return {"shots": shots, "rows": rows}


def main() -> None:
    """Run and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="choose learning rates on validation pictures instead")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="train only these")
    parser.add_argument("--shots", nargs="+", type=int, choices=SHOTS, default=SHOTS, help="train only these")
    arguments = parser.parse_args()
    result = (sweep if arguments.sweep else benchmark)(arguments.methods, arguments.shots)
    if (tuple(arguments.methods), tuple(arguments.shots)) != (METHODS, SHOTS):
        return
    command = "python benchmarks/emoji_fewshot/run.py" + (" --sweep" if arguments.sweep else "")
    path = HERE / ("sweep.json" if arguments.sweep else "results.json")
    write_text(path, json.dumps({"command": command, "environment": environment(), **result}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
