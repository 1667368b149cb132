"""What degradations on the way do to trained ManipShield detectors: every curve of data/manipulation/robustness.py.

    python benchmarks/manipulation/robustness.py --photos FOLDER --rate 1e-3     # artefacts of run.py; goes on

Each seed's artefact sees the same test pictures, at most 200 of each set, whole sources, clean and at every level. Its
threshold is the one that clean validation pictures gave: nobody knows beforehand what was done to a picture. Every
finished level of every seed is kept in ``runs/manipulation/robustness.json``, which ``run.py`` collects.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conditions import MAIN, SETS, Conditions, arguments, conditions, outputs_of

from vision_lowrank.data.manipulation.base import ManipulationSet
from vision_lowrank.data.manipulation.robustness import Degradation, curves
from vision_lowrank.engine.progress import say
from vision_lowrank.files import write_text
from vision_lowrank.studies.run import summarise
from vision_lowrank.tasks.manipulation.model import ManipulationModel
from vision_lowrank.tasks.manipulation.picture_sets import sample_evenly
from vision_lowrank.tasks.manipulation.scoring import Priors, score

PICTURES = 200
METRICS = ("auc", "balanced_accuracy", "recall", "false_alarm_rate", "pixel_f1", "pixel_auc", "box_ap50")
Values = dict[str, float]
CLEAN = "clean"


def robustness(study: Conditions, rate: float) -> dict[str, Any]:
    """Compute ``SET -> DEGRADATION -> METRIC`` with mean, spread and n over seeds, ``clean`` first."""
    levels = [None, *(each for curve in curves().values() for each in curve)]
    levels = levels[:2] if study.trial else levels
    splits, seeds = study.splits(), study.config(MAIN).seeds
    sets = {name: sample_evenly(splits.tests[name], 30 if study.trial else PICTURES) for name in SETS}
    found = []
    for seed in seeds:
        detector = ManipulationModel.load(study.folder / MAIN / f"lr-{rate:g}" / f"seed-{seed}" / "artefact")
        priors = Priors.of(splits.train, detector.cues)
        curve = Curves(study.folder / "robustness.json", detector, priors)
        found.append({(name, _name(level)): curve.at(sets[name], level) for level in levels for name in SETS})
    tables = {
        name: {_name(level): summarise(each[name, _name(level)] for each in found) for level in levels} for name in SETS
    }
    return {"pictures": {name: len(each) for name, each in sets.items()}, "sets": tables}


class Curves:
    """Metrics of one detector, kept in a file under its identity and that of the pictures."""

    def __init__(self, path: Path, detector: ManipulationModel, priors: Priors) -> None:
        self.path, self.detector, self.priors = path, detector, priors

    def at(self, pictures: ManipulationSet, degradation: Degradation | None) -> Values:
        """Compute the metrics of a set under a degradation, or read them from the file if they are there."""
        key = f"{self.detector.identity} {pictures.name} {pictures.hash} {_name(degradation)}"
        done: dict[str, Values] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        if key not in done:
            say(f"robustness: {key}")
            outputs, calibration = outputs_of(self.detector, pictures, degradation), self.detector.calibration
            metrics = score(self.detector, pictures, outputs, calibration, self.priors, degradation).metrics
            done[key] = {name: metrics[name] for name in METRICS if name in metrics}
            write_text(self.path, json.dumps(done, indent=1) + "\n")
        return done[key]


def _name(degradation: Degradation | None) -> str:
    return CLEAN if degradation is None else str(degradation)


def main() -> None:
    """Measure what is missing."""
    parser = arguments(__doc__)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the run whose artefacts are taken")
    given = parser.parse_args()
    robustness(conditions(parser, given), given.rate)


if __name__ == "__main__":
    main()
