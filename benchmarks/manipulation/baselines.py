"""Classical baselines of the manipulation study on its splits, and what files alone give away.

    python benchmarks/manipulation/baselines.py --photos FOLDER      # minutes; what is there is kept

``ela`` and ``noise`` (vision_lowrank/tasks/manipulation/baselines.py): logistic regression on features of training
pictures; the signal's own map says where. As for the detectors, validation pictures give temperature and threshold.
They also give the level at which a map's value counts as edited: of fifty from 0.01 to 0.95 that of the highest mean
F1, as for the detectors. These methods have no boxes and no cues. ``audit``: AUC of a classifier
that sees metadata alone: format, size, JPEG tables, file length. Kept in ``runs/manipulation/baselines.json``, which
``run.py`` collects.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log
from typing import Any, cast

import numpy as np
import torch
from conditions import PIXELS, SETS, Conditions, arguments, conditions, kept
from scipy.special import logit

from vision_lowrank.data.manipulation.base import REAL, ManipulationSet, ManipulationSplits
from vision_lowrank.data.manipulation.shortcut_audit import shortcut_audit
from vision_lowrank.engine.progress import say
from vision_lowrank.engine.task import Outputs
from vision_lowrank.files import write_text
from vision_lowrank.metrics.calibration import Calibration
from vision_lowrank.studies.run import summarise
from vision_lowrank.tasks.manipulation.baselines import SIGNALS, FeatureDetector
from vision_lowrank.tasks.manipulation.levels import LEVELS
from vision_lowrank.tasks.manipulation.model import ManipulationModel
from vision_lowrank.tasks.manipulation.picture_sets import sample_evenly
from vision_lowrank.tasks.manipulation.scoring import Priors, score

FOR_LEVEL = 400  # most validation pictures that the level is chosen on
SURE = 1e-12  # keeps logits finite


@dataclass(frozen=True)
class Maps:
    """A signal's maps in the place of a detector's, for :func:`score`: no boxes, no cues.

    Attributes:
        detector: whose maps.
        pictures: the set whose rows are asked for.
        level: value that becomes 1/2, so that all maps are cut at the same threshold; order and AUC stay.
    """

    detector: FeatureDetector
    pictures: ManipulationSet
    level: float
    cues: tuple[str, ...] = ()

    def heat(self, outputs: object, row: int, boxes: object, width: int, height: int) -> np.ndarray:
        """Compute value^(log 1/2 / log level), (height, width) float32 in [0, 1]."""
        return self.detector.heat_map(self.pictures.image(row)) ** (log(0.5) / log(self.level))


def classical(name: str, splits: ManipulationSplits) -> dict[str, Any]:
    """Fit, calibrate and test one signal."""
    train, val = splits.train, splits.val
    say(f"{name}: fit on {len(train)} pictures")
    detector = FeatureDetector.fit(name, (train.image(row) for row in range(len(train))), train.labels.tolist())
    calibration = Calibration.fit(_logits(detector, val), val.labels != REAL)
    level, metrics = best_level(detector, sample_evenly(val, FOR_LEVEL)), {}
    for test, pictures in splits.tests.items():
        say(f"{name}: test/{test}, {len(pictures)} pictures")
        maps = cast(ManipulationModel, Maps(detector, pictures, level))
        found = score(maps, pictures, _outputs(_logits(detector, pictures)), calibration, Priors.of(train, ()))
        metrics |= {f"test/{test}/{metric}": value for metric, value in found.metrics.items()}
    about = {key: value for key, value in calibration.to_dict().items() if key != "real_scores"}
    return {"metrics": summarise([kept(metrics, PIXELS)]), "level": level, "calibration": about}


def best_level(detector: FeatureDetector, pictures: ManipulationSet) -> float:
    """Return the one of ``LEVELS`` with the highest mean pixel F1 on edited pictures; the lowest of equals."""
    scores = []
    for row in np.flatnonzero(pictures.labels != REAL):
        mask = pictures.mask(int(row))
        if mask is not None and mask.any():
            called = detector.heat_map(pictures.image(int(row)))[None] > LEVELS[:, None, None]
            scores.append(2 * (called & mask).sum(axis=(1, 2)) / (called.sum(axis=(1, 2)) + mask.sum()))
    return float(LEVELS[np.argmax(np.mean(scores, axis=0))])


def baselines(study: Conditions) -> dict[str, Any]:
    """Return ``methods``: name -> metrics; ``audit``: set -> AUC of metadata."""
    path, splits = study.folder / "baselines.json", study.splits()
    done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if done.get("train_hash") != splits.train.hash:
        done = {"train_hash": splits.train.hash, "methods": {}, "audit": {}}
    for name in SIGNALS:
        if name not in done["methods"]:
            done["methods"][name] = classical(name, splits)
            write_text(path, json.dumps(done, indent=1) + "\n")
    for name, pictures in {"train": splits.train, **{each: splits.tests[each] for each in SETS}}.items():
        if name not in done["audit"]:
            say(f"audit of {name}")
            done["audit"][name] = asdict(shortcut_audit(pictures))
            write_text(path, json.dumps(done, indent=1) + "\n")
    return done


def _logits(detector: FeatureDetector, pictures: ManipulationSet) -> np.ndarray:
    """Compute the logits (N,) float64."""
    scores: Sequence[float] = [detector.score(pictures.image(row)) for row in range(len(pictures))]
    return logit(np.clip(scores, SURE, 1 - SURE))


def _outputs(logits: np.ndarray) -> Outputs:
    nothing = torch.zeros(len(logits), 0)
    return {
        "logit": torch.from_numpy(logits),
        "cues": nothing,
        "boxes": torch.zeros(len(logits), 0, 4),
        "objectness": nothing,
        "valid": nothing.bool(),
    }


def main() -> None:
    """Measure what is missing."""
    parser = arguments(__doc__)
    baselines(conditions(parser, parser.parse_args()))


if __name__ == "__main__":
    main()
