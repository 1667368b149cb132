"""Scores of a tracker on a benchmark under a named convention: per sequence, as a whole, by attribute.

Repetitions of a sequence are averaged first, then sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...errors import DataError, UserError, near_miss
from .base import Convention, Prediction, Scores, Truth, average
from .got10k import GOT10K
from .lasot import LASOT
from .pytracking import PYTRACKING, PYTRACKING_ALL
from .trackingnet import TRACKINGNET

CONVENTIONS: dict[str, Convention] = {
    each.name: each for each in (PYTRACKING_ALL, PYTRACKING, LASOT, GOT10K, TRACKINGNET)
}
DEFAULT = PYTRACKING_ALL.name


@dataclass(frozen=True)
class TrackingScores:
    """Scores of a benchmark.

    Attributes:
        convention: the name of the rules they were computed by.
        benchmark: its name.
        overall: of all sequences.
        sequences: name -> of one, repetitions averaged.
        attributes: name -> of the sequences that have it.
        thresholds: curve -> (K,), its x axis.
    """

    convention: str
    benchmark: str
    overall: Scores
    sequences: Mapping[str, Scores]
    attributes: Mapping[str, Scores]
    thresholds: Mapping[str, np.ndarray]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what is undefined is None."""
        return {
            "convention": self.convention,
            "benchmark": self.benchmark,
            "thresholds": {name: values.tolist() for name, values in self.thresholds.items()},
            **_plain(self.overall),
            "sequences": {name: _plain(each) for name, each in self.sequences.items()},
            "attributes": {name: _plain(each)["metrics"] for name, each in self.attributes.items()},
        }


def convention_of(name: str) -> Convention:
    """Return a convention by its name.

    Raises:
        UserError: there is none; the message lists the names.
    """
    if name not in CONVENTIONS:
        raise UserError(f"unknown convention '{name}'.{near_miss(name, CONVENTIONS)} Known: {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[name]


def score_tracking(
    predictions: Mapping[str, Sequence[Prediction]],
    truths: Sequence[Truth],
    convention: str = DEFAULT,
    benchmark: str = "",
) -> TrackingScores:
    """Score the runs of a tracker.

    Args:
        predictions: name of a sequence -> its repetitions, one or more.
        truths: of all sequences of the benchmark.
        convention: a key of :data:`CONVENTIONS`.
        benchmark: its name, such as ``lasot`` or ``uav123``: decides what an absent target counts.

    Raises:
        UserError: the convention is unknown.
        DataError: there are no sequences, one has no predictions (names the first), or cannot be scored.
    """
    rules = convention_of(convention)
    lacking = [truth.name for truth in truths if not predictions.get(truth.name)]
    if lacking or not truths:
        of = f", the first is '{lacking[0]}'" if lacking else ""
        raise DataError(f"{len(lacking):,} of {len(truths):,} sequences have no result{of}: score complete runs only.")
    sequences = {
        truth.name: average([rules.score(each, truth, benchmark) for each in predictions[truth.name]], equal=True)
        for truth in truths
    }
    flagged: dict[str, list[Scores]] = {}
    for truth in truths:
        for attribute in truth.attributes:
            flagged.setdefault(attribute, []).append(sequences[truth.name])
    return TrackingScores(
        convention,
        benchmark,
        average(list(sequences.values())),
        sequences,
        {name: average(each) for name, each in sorted(flagged.items())},
        rules.thresholds,
    )


def frames_per_second(seconds: ArrayLike) -> float | None:
    """Return the mean of 1 / time over the positive times of frames, the toolkits' speed; None where there is none."""
    times = np.asarray(seconds, dtype=np.float64).ravel()
    times = times[times > 0]
    return float((1 / times).mean()) if len(times) else None


def _plain(scores: Scores) -> dict[str, Any]:
    return {
        "metrics": {name: None if np.isnan(value) else value for name, value in scores.values.items()},
        "curves": {name: [None if np.isnan(v) else v for v in curve.tolist()] for name, curve in scores.curves.items()},
    }
