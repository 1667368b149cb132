"""ManipShield, its ablations and the baselines on edited photographs, three seeds each.

    python benchmarks/manipulation/run.py --photos FOLDER                            # goes on if interrupted
    python benchmarks/manipulation/run.py --photos FOLDER --methods full linear      # train only these, write nothing
    python benchmarks/manipulation/run.py --trial                                    # two steps, writes nothing here

Recipes: configs/manipulation/edits_*.yaml, on edits of real photographs: eight tenths of them for training, a tenth
each for validation and testing, two squares of 96 pixels of every photograph with four edits each, of eleven kinds; in
the test set ``unseen`` with four edits of four kinds that no training picture has. Learning rates are chosen on the
first seed's validation pictures, by AUC; ablations take the rate of what they ablate. Thresholds and temperatures are
fitted on validation pictures too.

With ``--methods`` two processes can share the work once ManipShield's rate is chosen, if they never name the same
method; ``robustness.py`` and ``baselines.py`` beside this file can be run before as well. The full command collects all
of it, runs what is missing, and writes ``results.json`` beside this file. Step times are of whole steps, all methods in
turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from baselines import baselines
from conditions import MAIN, METHODS, Conditions, arguments, command, conditions, kept, names_of
from robustness import robustness

from vision_lowrank.config import RunConfig, environment
from vision_lowrank.engine.progress import say
from vision_lowrank.files import write_text
from vision_lowrank.studies.comparison import step_times
from vision_lowrank.studies.run import open_run, run_seed
from vision_lowrank.studies.trials import every_seed

RATES = {MAIN: (1e-3, 2e-3), "full": (5e-4, 1e-3), "linear": (1e-3,)}  # of the others: that of MAIN
ROUNDS = 12
Row = dict[str, Any]


def finished(method: str, study: Conditions, rate: float, seed: int) -> Row:
    """The result of one training; one that is there already is read back."""
    config, folder = study.config(method, rate), study.folder / method / f"lr-{rate:g}"
    open_run(folder, config)
    return run_seed(config, seed, folder / f"seed-{seed}")


def validation(method: str, study: Conditions) -> dict[float, float]:
    """Learning rate -> the first seed's AUC on validation pictures."""
    seed = study.config(method).task.seeds[0]
    rates = (1e-3,) if study.trial else RATES[method]
    return {rate: finished(method, study, rate, seed)["metrics"]["val/auc"] for rate in rates}


def row(method: str, study: Conditions) -> Row:
    """All seeds of a method at the best learning rate; an ablation's is that of what it ablates."""
    config, aucs = study.config(method), validation(method if method in RATES else MAIN, study)
    rate = max(aucs, key=lambda each: aucs[each])
    run = partial(finished, method, study)
    found, results = every_seed(run, (rate,), config.task.seeds, lambda line: say(f"{method}: {line}"))
    facts = [each["facts"]["manipulation"] for each in results]
    names = names_of(config.task.decoder)
    return {
        "method": method,
        "lr": rate,
        "validation": {f"{each:g}": auc for each, auc in aucs.items()} if method in RATES else {},
        "metrics": kept(found["metrics"], names),
        "untrained": kept(found["baseline"], names),
        "trained_parameters": found["trained_parameters"],
        "peak_memory": results[0]["cost"]["peak_memory"],
        "step_seconds": median(each["cost"]["step_seconds"] for each in results),
        "layers": [each["layers"]["chosen"] for each in facts],
        "of_layers": facts[0]["layers"]["of"],
        "contrast": [each["contrast"] for each in facts],
        "calibration": [each["calibration"] for each in facts],
        "data": {key: results[0]["facts"][key] for key in ("train_images", "train_hash", "val_images", "tests")},
    }


def costs(rows: Sequence[Mapping[str, Any]], study: Conditions) -> dict[str, dict[str, float]]:
    """Seconds of a step of every method and the ratio to ManipShield's, all in turns, up to the layer that is read."""
    configs = [at_layer(study.config(row["method"], row["lr"]), row["layers"][0]) for row in rows]
    names = [row["method"] for row in rows]
    times = dict(zip(names, step_times(configs, 2 if study.trial else ROUNDS), strict=True))
    return {
        method: {
            "step_seconds": median(own),
            "ratio": median(one / other for one, other in zip(own, times[MAIN], strict=True)),
        }
        for method, own in times.items()
    }


def at_layer(config: RunConfig, layer: int) -> RunConfig:
    """`config` with the layer that its first seed chose."""
    return config.model_copy(update={"task": config.task.model_copy(update={"layer": layer})})


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="train only these, and write nothing")
    given = parser.parse_args()
    study = conditions(parser, given)
    rows = []
    for method in given.methods or METHODS:
        rows.append(row(method, study))
    if given.methods:
        return
    result = {
        "command": command("benchmarks/manipulation/run.py"),
        "environment": environment() | {"threads": given.threads},
        "rows": rows,
        "costs": costs(rows, study),
        "baselines": baselines(study),
        "robustness": robustness(study, next(row["lr"] for row in rows if row["method"] == MAIN)),
    }
    write_text(study.results, json.dumps(result, indent=1) + "\n")
    print(study.results)


if __name__ == "__main__":
    main()
