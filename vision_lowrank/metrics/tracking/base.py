"""What is scored, what a score is, and how scores are averaged: the same for every convention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Truth:
    """What is true of one sequence.

    Attributes:
        name: of the sequence, unique in its benchmark.
        boxes: (L, 4) float64 left, top, width, height in pixels; NaN where none is known.
        visible: (L,) bool, whether the target is to be seen; all True where the benchmark does not say.
        size: (width, height) of the frames; None where no convention asks.
        attributes: such as ``fast_motion``: what tables are made by.
    """

    name: str
    boxes: np.ndarray
    visible: np.ndarray
    size: tuple[int, int] | None = None
    attributes: tuple[str, ...] = ()


class Prediction(NamedTuple):
    """What a tracker said of one sequence.

    Attributes:
        boxes: (N, 4) float64 left, top, width, height in pixels, one row per frame from the first on.
        source: what to call it in messages, such as a path.
    """

    boxes: np.ndarray
    source: str


@dataclass(frozen=True)
class Scores:
    """Scores of one run on one sequence, or an average of such.

    Attributes:
        values: metric -> value, shares in [0, 1].
        curves: curve -> (K,) values at the convention's thresholds.
        weight: how much it counts in an average over sequences.
    """

    values: Mapping[str, float]
    curves: Mapping[str, np.ndarray]
    weight: float = 1.0


@dataclass(frozen=True)
class Convention:
    """A named way to score.

    Attributes:
        name: as people choose it.
        thresholds: curve -> (K,), its x axis.
        score: ``score(prediction, truth, benchmark)`` gives the :class:`Scores` of one run.
    """

    name: str
    thresholds: Mapping[str, np.ndarray]
    score: Callable[[Prediction, Truth, str], Scores] = field(repr=False)


def average(scores: Sequence[Scores], equal: bool = False) -> Scores:
    """Average values and curves; the weight of the average is the mean weight.

    Args:
        scores: one or more, of the same metrics.
        equal: each counts the same, whatever its weight, as repetitions do.

    Returns:
        NaN everywhere where all weights are 0.
    """
    weights = np.ones(len(scores)) if equal else np.array([each.weight for each in scores], dtype=np.float64)
    kept = [(weight, each) for weight, each in zip(weights, scores, strict=True) if weight]
    total = sum(weight for weight, _ in kept)
    values = {name: _mean([(w, each.values[name]) for w, each in kept], total) for name in scores[0].values}
    curves = {
        name: sum((w * each.curves[name] for w, each in kept), np.zeros(len(curve))) / total
        if total
        else np.full(len(curve), np.nan)
        for name, curve in scores[0].curves.items()
    }
    return Scores(values, curves, float(np.mean([each.weight for each in scores])))


def _mean(pairs: Sequence[tuple[float, float]], total: float) -> float:
    return float(sum(weight * value for weight, value in pairs) / total) if total else float("nan")
