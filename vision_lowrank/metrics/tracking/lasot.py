"""LaSOT's official toolkit (MATLAB): frames with an absent target are left out before counting, and divided by.

So an absent target is a failure in all three curves. A kept frame whose true box has any of left, top, width, height
<= 0 fails every overlap threshold and *passes* every centre threshold. Predictions that are not numbers or have no area
are replaced by the one before. Thresholds and metrics are those of :mod:`.pytracking`.

The toolkit looks at LaSOT's own coordinates, which count from 1: give boxes as they are in the files.
"""

from __future__ import annotations

import numpy as np

from .base import Convention, Prediction, Scores, Truth
from .overlap import center_errors, normalized_center_errors, overlaps
from .pytracking import THRESHOLDS, scores_of
from .sanitise import fitted, hold


def _score(prediction: Prediction, truth: Truth, benchmark: str) -> Scores:
    """Score one run.

    Raises:
        DataError: there are fewer boxes than frames.
    """
    predicted = fitted(prediction, truth)
    predicted = hold(predicted, np.isnan(predicted).any(axis=1) | ~(predicted[:, 2:] > 0).all(axis=1), truth.boxes)
    predicted[0] = truth.boxes[0]
    predicted, boxes = predicted[truth.visible], truth.boxes[truth.visible]
    positive = (boxes > 0).all(axis=1)
    overlap = np.where(positive, overlaps(predicted, boxes), -1)
    error = np.where(positive, center_errors(predicted, boxes), -1)
    normalized = np.where(positive, normalized_center_errors(predicted, boxes), -1)
    return scores_of(overlap, error, normalized, len(truth.boxes))


LASOT = Convention("lasot", THRESHOLDS, _score)
