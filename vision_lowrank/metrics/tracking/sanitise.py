"""Predictions brought to the truth's length and freed of what no metric can use, as the toolkits do it."""

from __future__ import annotations

import numpy as np

from ...errors import DataError
from .base import Prediction, Truth


def fitted(prediction: Prediction, truth: Truth, pad: bool = False, cut: bool = True) -> np.ndarray:
    """Return as many rows as the sequence has frames, (L, 4), a copy.

    Args:
        prediction: of any length.
        truth: of the sequence.
        pad: give missing frames boxes of zeros instead of an error.
        cut: leave out rows beyond the last frame instead of an error.

    Raises:
        DataError: there are no boxes of four numbers, or too few or too many.
    """
    boxes, frames = np.array(prediction.boxes, dtype=np.float64), len(truth.boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(
            f"{prediction.source}: boxes of shape {boxes.shape}: give (frames, 4), left, top, width, height."
        )
    if (len(boxes) < frames and not pad) or (len(boxes) > frames and not cut):
        raise DataError(
            f"{prediction.source}: {len(boxes):,} boxes for the {frames:,} frames of '{truth.name}': give one per "
            "frame, the first included."
        )
    return np.concatenate([boxes[:frames], np.zeros((max(0, frames - len(boxes)), 4))])


def check_boxes(boxes: np.ndarray, source: str) -> None:
    """Check that all numbers are finite and no side is negative.

    Raises:
        DataError: names the source and the first row, counted from 1.
    """
    for bad, what in (
        (~np.isfinite(boxes).all(axis=1), "no finite number"),
        ((boxes[:, 2:] < 0).any(axis=1), "a negative side"),
    ):
        if bad.any():
            row = int(np.argmax(bad))
            numbers = ", ".join(f"{value:g}" for value in boxes[row])
            raise DataError(f"{source}, row {row + 1}: {numbers} has {what}: run the tracker again on this sequence.")


def hold(boxes: np.ndarray, bad: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Put the row before in place of each bad row, from the second on, where the truth has no NaN; a copy.

    Args:
        boxes: (L, 4) predictions.
        bad: (L,) bool.
        truth: (L, 4).
    """
    held, known = boxes.copy(), ~np.isnan(truth).any(axis=1)
    for row in np.flatnonzero(bad[1:] & known[1:]) + 1:
        held[row] = held[row - 1]
    return held
