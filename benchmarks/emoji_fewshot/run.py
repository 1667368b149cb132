"""Few-shot on emoji in styles that tiny-clip has never seen: all numbers of the README's table.

    python benchmarks/emoji_fewshot/run.py            # about half an hour on two cores; resumes if interrupted
    python benchmarks/emoji_fewshot/run.py --sweep    # the learning rates, chosen on validation pictures

Writes ``results.json`` (or ``sweep.json``) beside this file. Training is on the Fluent style; the test concepts are
never trained on. Recipes: configs/fewshot/emoji_*.yaml. With ``--methods`` or ``--shots`` only these are
trained and nothing is written; ``--jobs N`` trains in N processes.
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
from vision_lowrank.studies.study import Study, run_studies, run_study
from vision_lowrank.studies.timing import step_times
from vision_lowrank.studies.variants import Variant

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "fewshot"
RUNS = HERE.parents[1] / "runs" / "emoji_fewshot"
METHODS = ("linear_probe", "lora", "block_lora", "comp_lora", "glad")
SHOTS = (1, 2, 4, 8, 16)
RATES = dict.fromkeys(METHODS, (5e-4, 1e-3, 2e-3)) | {"linear_probe": (3e-3, 1e-2, 3e-2)}
ROUNDS = 30


def recipe(method: str, shots: int, *overrides: str) -> RunConfig:
    """Load the committed recipe of `method` with another number of shots."""
    return load_config(
        CONFIGS / f"emoji_{method}.yaml", [f"task.shots={shots}", "engine.tensorboard=false", *overrides]
    )


def benchmark(methods: Sequence[str], shots_list: Sequence[int], launch: Launcher) -> dict[str, Any]:
    """Run every method and number of shots, three seeds; and measure the cost of a step, all methods alternated."""
    studies = [
        Study(RUNS / f"shots-{shots}", f"{shots} shots", [Variant(name, recipe(name, shots)) for name in methods])
        for shots in shots_list
    ]
    results = zip(shots_list, run_studies(studies, launch, say), strict=True)
    rows = [row_of(shots, row) for shots, result in results for row in complete_rows(result)]
    return {"rows": rows, "step_seconds": step_seconds() if tuple(methods) == METHODS else {}}


def row_of(shots: int, row: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a study's row."""
    return {
        "method": row["method"],
        "shots": shots,
        "baseline": row["baseline"],
        "metrics": row["metrics"],
        "trainable_parameters": row["trained_parameters"],
        "peak_memory": row["peak_memory"],
        "train_hashes": {seed: facts["train_hash"] for seed, facts in row["facts"].items()},
        "test_hashes": row["facts"]["1"]["test_hashes"],
    }


def step_seconds(shots: int = 4) -> dict[str, float]:
    """Measure the median time of forward and backward of one batch, the methods taking turns."""
    times = step_times([recipe(method, shots) for method in METHODS], ROUNDS)
    return {method: median(values) for method, values in zip(METHODS, times, strict=True)}


def sweep(methods: Sequence[str], launch: Launcher) -> dict[str, Any]:
    """Compute the validation accuracy (never test) of each learning rate, seed 1."""
    shots = 4
    variants = [Variant(name, recipe(name, shots, "seeds=[1]"), rates=RATES[name]) for name in methods]
    result = run_study(Study(RUNS / "sweep", "learning rates", variants), launch, say)
    rows = [
        {"method": row["method"], "lr": float(rate), "val_accuracy": value}
        for row in complete_rows(result)
        for rate, value in row["validation"].items()
    ]
    return {"shots": shots, "rows": rows}


def main() -> None:
    """Run and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="choose learning rates on validation pictures instead")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="train only these")
    parser.add_argument("--shots", nargs="+", type=int, choices=SHOTS, default=SHOTS, help="train only these")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args()
    launch = local(given.jobs)
    result = sweep(given.methods, launch) if given.sweep else benchmark(given.methods, given.shots, launch)
    if (tuple(given.methods), tuple(given.shots)) != (METHODS, SHOTS):
        return
    command = "python benchmarks/emoji_fewshot/run.py" + (" --sweep" if given.sweep else "")
    path = HERE / ("sweep.json" if given.sweep else "results.json")
    write_text(path, json.dumps({"command": command, "environment": environment(), **result}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
