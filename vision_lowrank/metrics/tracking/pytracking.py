"""The arithmetic of pytracking and its descendants (STARK, OSTrack, LoRAT), under two names.

===================  =================================================================================================
``pytracking-all``   counts are divided by all frames; the rule of STARK, OSTrack, LoRAT, behind most published numbers
``pytracking``       as pytracking does today: by all frames for LaSOT and UAV123, by valid ones for other benchmarks
===================  =================================================================================================

A frame is valid where the true box has an area and the target is visible. An invalid one fails every overlap threshold
and every centre threshold, and *passes* every normalised one; with two exceptions: on UAV123 it passes the centre
thresholds too, and on LaSOT (``pytracking-all``: also VastTrack) frames with an absent target fail the normalised ones.
So under ``pytracking`` the normalised precision of a sequence may exceed 1: passed invalid frames are not in the
denominator.

``success`` is the share of frames with IoU > t at t = 0, 0.05, …, 1; ``precision`` with an error <= 0, 1, …, 50 pixels;
``normalized_precision`` with an error <= 0, 0.01, …, 0.5 true sides. ``success_auc`` is the mean of the 21 values, so a
perfect tracker has 20/21; ``precision`` is read at 20 pixels, ``normalized_precision`` at 0.2, ``op50`` and ``op75`` at
IoU 0.5 and 0.75.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import numpy as np

from ...errors import DataError
from .base import Convention, Prediction, Scores, Truth
from .overlap import center_errors, normalized_center_errors, overlaps
from .sanitise import check_boxes, fitted, hold

OVERLAPS, PIXELS, SIDES = np.arange(21) / 20, np.arange(51.0), np.arange(51) / 100
THRESHOLDS = {"success": OVERLAPS, "precision": PIXELS, "normalized_precision": SIDES}
UAV = ("uav123", "uav20l")


def scores_of(overlap: np.ndarray, error: np.ndarray, normalized: np.ndarray, frames: int) -> Scores:
    """Count frames at every threshold and divide by `frames`.

    Args:
        overlap: (N,) IoU; strictly more than the threshold passes.
        error: (N,) distance of middles in pixels; at most the threshold passes.
        normalized: (N,) the same in true sides.
        frames: the denominator.
    """
    success = (overlap[:, None] > OVERLAPS).sum(axis=0) / frames
    precision = (error[:, None] <= PIXELS).sum(axis=0) / frames
    sides = (normalized[:, None] <= SIDES).sum(axis=0) / frames
    values = {
        "success_auc": float(success.mean()),
        "precision": float(precision[20]),
        "normalized_precision": float(sides[20]),
        "op50": float(success[10]),
        "op75": float(success[15]),
    }
    return Scores(values, {"success": success, "precision": precision, "normalized_precision": sides})


def frame_errors(
    predicted: np.ndarray, truth: Truth, benchmark: str, absent_fail: Collection[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compute overlap, error and normalised error of every frame, with what invalid frames count, and validity; (L,).

    Args:
        predicted: (L, 4), first row the true one.
        truth: of the sequence.
        benchmark: its name decides the exceptions.
        absent_fail: benchmarks where absent targets fail both centre errors.
    """
    valid = (truth.boxes[:, 2:] > 0).all(axis=1) & truth.visible
    overlap = np.where(valid, overlaps(predicted, truth.boxes), -1)
    error = np.where(valid, center_errors(predicted, truth.boxes), -1 if benchmark in UAV else np.inf)
    normalized = np.where(valid, normalized_center_errors(predicted, truth.boxes), -1)
    if benchmark in absent_fail:
        error, normalized = (np.where(truth.visible, each, np.inf) for each in (error, normalized))
    return overlap, error, normalized, valid


def _score(
    prediction: Prediction,
    truth: Truth,
    benchmark: str,
    all_frames: Collection[str] | None,
    absent_fail: Collection[str],
) -> Scores:
    """Score one run.

    Args:
        prediction: of the run.
        truth: of the sequence.
        benchmark: its name.
        all_frames: benchmarks whose denominator is all frames; None = every one.
        absent_fail: see :func:`frame_errors`.

    Raises:
        DataError: see :func:`fitted` and :func:`check_boxes`; or no frame is valid and the denominator would be 0.
    """
    predicted = fitted(prediction, truth, pad=benchmark != "lasot")
    check_boxes(predicted, prediction.source)
    empty = (predicted[:, 2:] == 0).any(axis=1)
    empty[len(prediction.boxes) :] = False  # rows that were never predicted stay zeros
    predicted = hold(predicted, empty, truth.boxes)
    predicted[0] = truth.boxes[0]
    overlap, error, normalized, valid = frame_errors(predicted, truth, benchmark, absent_fail)
    frames = len(valid) if all_frames is None or benchmark in all_frames else int(valid.sum())
    if not frames:
        raise DataError(f"sequence '{truth.name}' has no frame with a visible target: leave it out.")
    return scores_of(overlap, error, normalized, frames)


PYTRACKING_ALL = Convention(
    "pytracking-all", THRESHOLDS, partial(_score, all_frames=None, absent_fail=("lasot", "vasttrack"))
)
PYTRACKING = Convention("pytracking", THRESHOLDS, partial(_score, all_frames=("lasot", *UAV), absent_fail=("lasot",)))
