"""ManipShield, its ablations and the baselines on edited photographs, three seeds each.

    python benchmarks/manipulation/run.py --photos FOLDER                            # goes on if interrupted
    python benchmarks/manipulation/run.py --photos FOLDER --methods full linear      # train only these, write nothing
    python benchmarks/manipulation/run.py --trial                                    # two steps, writes nothing here

Recipes: configs/manipulation/edits_*.yaml, on edits of real photographs: eight tenths of them for training, a tenth
each for validation and testing, two squares of 96 pixels of every photograph with four edits each, of eleven kinds; in
the test set ``unseen`` with four edits of four kinds that no training picture has. Learning rates are chosen on the
first seed's validation pictures, by AUC; ablations take the rate of what they ablate. Thresholds and temperatures are
fitted on validation pictures too. ``--jobs N`` trains in N processes.

``robustness.py`` and ``baselines.py`` beside this file can be run before as well. The full command collects all of it,
runs what is missing, and writes ``results.json`` beside this file. Step times are of whole steps, all methods in turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from baselines import baselines
from conditions import MAIN, METHODS, Conditions, arguments, command, conditions, kept, names_of
from robustness import robustness

from vision_lowrank.config import RunConfig, environment
from vision_lowrank.engine.progress import say
from vision_lowrank.files import write_text
from vision_lowrank.studies.columns import complete_rows
from vision_lowrank.studies.launch import Launcher
from vision_lowrank.studies.processes import local
from vision_lowrank.studies.study import Study, at_rate, run_study
from vision_lowrank.studies.timing import step_times
from vision_lowrank.studies.variants import Variant

RATES = {MAIN: (1e-3, 2e-3), "full": (5e-4, 1e-3), "linear": (1e-3,)}  # of the others: that of MAIN
ROUNDS = 12
Row = dict[str, Any]


def variants(methods: Sequence[str], study: Conditions) -> list[Variant]:
    """Return the methods with the rates to choose from; what they follow is there as well, and first."""
    main = Variant(MAIN, study.config(MAIN), rates=(1e-3,) if study.trial else RATES[MAIN])
    rates = {name: (1e-3,) if study.trial else RATES[name] for name in methods if name in RATES and name != MAIN}
    found = {name: Variant(name, study.config(name), rates=each) for name, each in rates.items()}
    followers = {name: Variant(name, study.config(name), follows=main) for name in methods if name not in RATES}
    leads = {MAIN: main} if followers or MAIN in methods else {}
    every = leads | found | followers
    return sorted(every.values(), key=lambda variant: METHODS.index(variant.name))


def rows(methods: Sequence[str], study: Conditions, launch: Launcher) -> list[Row]:
    """Run all seeds of every method at the best learning rate."""
    plan = Study(study.folder, "edited photographs", variants(methods, study))
    return [kept_row(row, study) for row in complete_rows(run_study(plan, launch, say))]


def kept_row(row: Row, study: Conditions) -> Row:
    """Return what is kept of a study's row."""
    facts = list(row["facts"].values())
    about = [each["manipulation"] for each in facts]
    names = names_of(study.config(row["method"]).task.decoder)
    return {
        **{key: row[key] for key in ("method", "lr", "validation")},
        "metrics": kept(row["metrics"], names),
        "untrained": kept(row["baseline"], names),
        **{key: row[key] for key in ("trained_parameters", "peak_memory", "step_seconds")},
        "layers": [each["layers"]["chosen"] for each in about],
        "of_layers": about[0]["layers"]["of"],
        "contrast": [each["contrast"] for each in about],
        "calibration": [each["calibration"] for each in about],
        "data": {key: facts[0][key] for key in ("train_images", "train_hash", "val_images", "tests")},
    }


def costs(rows: Sequence[Mapping[str, Any]], study: Conditions) -> dict[str, dict[str, float]]:
    """Measure a step of every method in seconds and its ratio to ManipShield's, all in turns.

    The tower runs up to the layer that is read.
    """
    configs = [at_layer(at_rate(study.config(row["method"]), row["lr"]), row["layers"][0]) for row in rows]
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
    """Return `config` with the layer that its first seed chose."""
    return config.model_copy(update={"task": config.task.model_copy(update={"layer": layer})})


def main() -> None:
    """Run what is missing and write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="train only these and what they follow")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args()
    study = conditions(parser, given)
    found = rows(given.methods or METHODS, study, local(given.jobs))
    if given.methods:
        return
    result = {
        "command": command("benchmarks/manipulation/run.py"),
        "environment": environment() | {"threads": given.threads},
        "rows": found,
        "costs": costs(found, study),
        "baselines": baselines(study),
        "robustness": robustness(study, next(row["lr"] for row in found if row["method"] == MAIN)),
    }
    write_text(study.results, json.dumps(result, indent=1) + "\n")
    print(study.results)


if __name__ == "__main__":
    main()
