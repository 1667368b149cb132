"""Which visible signs of an edit were recognised? Multi-label metrics over edited pictures with annotated cues.

cues = None is not annotated: the picture is skipped. cues = () is annotated and none: it counts. Pictures x C cues;
a cue is reported where its probability is at least the threshold (0.5, or one per cue of :func:`tune_thresholds`).

====================  =================================================================================================
``cue_micro_f1``      2 TP / (2 TP + FP + FN), all pictures and cues together
``cue_macro_f1``      mean of the same per cue, over cues that are annotated or reported at least once
``cue_map``           mean average precision (without interpolation) over cues with at least one positive
``cue_hamming``       share of all (picture, cue) answers that are right: 1 - Hamming loss
``cue_exact``         share of pictures with every cue right
``cue_pictures``      number of annotated pictures
====================  =================================================================================================

``most_frequent/NAME`` is the same for a detector that always reports the one most frequent training cue. Definitions
as in ManipBench's card (manipbench, metrics).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError, near_miss
from .image_level import average_precision

Cues = Sequence[Collection[str] | None]


def cue_report(
    probabilities: ArrayLike,
    cues: Cues,
    names: Sequence[str],
    thresholds: float | ArrayLike = 0.5,
    frequent: ArrayLike | None = None,
) -> dict[str, float | None]:
    """Compute every metric of the module docstring; None where undefined, as without annotated pictures.

    Args:
        probabilities: (N, C).
        cues: N of names, or None.
        names: C, the vocabulary in the order of the columns.
        thresholds: one, or (C,).
        frequent: (C,) of :func:`most_frequent` over the TRAINING cues; None = no baseline.

    Raises:
        UserError: shapes differ, or a cue is not in the vocabulary.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.shape != (len(cues), len(names)):
        raise UserError(f"cue probabilities {p.shape}: give one per picture and cue, ({len(cues)}, {len(names)}).")
    truth, known = cue_targets(cues, names)
    report = _metrics(p[known], truth[known], thresholds)
    if frequent is not None:
        constant = np.tile(np.asarray(frequent, dtype=np.float64), (len(p), 1))
        baseline = _metrics(constant[known], truth[known], 0.5)
        report |= {f"most_frequent/{name}": value for name, value in baseline.items()}
    return report


def cue_targets(cues: Cues, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return annotated cues as (N, C) bool, and which pictures are annotated, (N,) bool.

    Raises:
        UserError: a cue is not in `names`.
    """
    place = {name: column for column, name in enumerate(names)}
    targets = np.zeros((len(cues), len(names)), dtype=bool)
    for row, own in enumerate(cues):
        for cue in own or ():
            if cue not in place:
                raise UserError(f"cue '{cue}' is not in the vocabulary {', '.join(names)}.{near_miss(cue, names)}")
            targets[row, place[cue]] = True
    return targets, np.array([own is not None for own in cues], dtype=bool)


def most_frequent(cues: Cues, names: Sequence[str]) -> np.ndarray:
    """Mark the cue annotated most often, (C,) float64: 1 there, at the first of equals, 0 elsewhere and without any."""
    counts = cue_targets(cues, names)[0].sum(axis=0)
    return ((np.arange(len(names)) == counts.argmax()) & (counts > 0)).astype(np.float64)


def tune_thresholds(probabilities: ArrayLike, cues: Cues, names: Sequence[str]) -> np.ndarray:
    """Find per cue the threshold of the highest F1 on validation pictures, (C,); the highest of equals.

    A cue without an annotated picture keeps 0.5. Thresholds lie on probabilities that occur.
    """
    p, (truth, known) = np.asarray(probabilities, dtype=np.float64), cue_targets(cues, names)
    found = np.full(len(names), 0.5)
    for column in np.flatnonzero(truth.any(axis=0)):
        s, y = p[known, column], truth[known, column]
        order = np.argsort(-s, kind="stable")
        f1 = 2 * np.cumsum(y[order]) / (np.arange(1, len(s) + 1) + y.sum())
        last = np.append(s[order][1:] != s[order][:-1], True)
        found[column] = s[order][last][f1[last].argmax()]
    return found


def _metrics(p: np.ndarray, truth: np.ndarray, thresholds: float | ArrayLike) -> dict[str, float | None]:
    called = p >= np.asarray(thresholds, dtype=np.float64)
    hits, marks = (called & truth).sum(axis=0), called.sum(axis=0) + truth.sum(axis=0)
    seen = marks > 0
    each = [average_precision(scores, right) for scores, right in zip(p.T, truth.T, strict=True)]
    precisions = [value for value in each if value is not None]
    pictures = len(p) > 0
    return {
        "cue_micro_f1": float(2 * hits.sum() / marks.sum()) if seen.any() else None,
        "cue_macro_f1": float((2 * hits[seen] / marks[seen]).mean()) if seen.any() else None,
        "cue_map": float(np.mean(precisions)) if precisions else None,
        "cue_hamming": float((called == truth).mean()) if pictures else None,
        "cue_exact": float((called == truth).all(axis=1).mean()) if pictures else None,
        "cue_pictures": float(len(p)),
    }
