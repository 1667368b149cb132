"""GOT-10k's toolkit, as for its validation set: frames of all sequences and repetitions in one pool.

The first frame is dropped, and so are frames where the target is not visible (the toolkit asks for ``cover > 0``). Both
boxes are put inside the picture first (:func:`~.overlap.bounded_overlaps`). ``ao`` is the mean IoU, ``sr50`` and
``sr75`` the shares of frames with IoU > 0.5 and > 0.75, ``success`` the share with IoU > t at t = 0, 0.01, …, 1. The
pool is a mean over sequences that weighs each by its frames.
"""

from __future__ import annotations

import numpy as np

from ...errors import DataError
from .base import Convention, Prediction, Scores, Truth
from .overlap import bounded_overlaps, overlaps
from .sanitise import check_boxes, fitted

THRESHOLDS = np.linspace(0, 1, 101)


def _score(prediction: Prediction, truth: Truth, benchmark: str) -> Scores:
    """Score one run; a sequence whose size is not known is not bounded.

    Raises:
        DataError: there is not one box per frame, a number is not finite, or a visible frame has no true box.
    """
    predicted = fitted(prediction, truth, cut=False)
    check_boxes(predicted, prediction.source)
    kept = truth.visible.copy()
    kept[0] = False
    predicted, boxes = predicted[kept], truth.boxes[kept]
    if np.isnan(boxes).any():
        raise DataError(f"sequence '{truth.name}' has visible frames without a true box: it cannot be scored here.")
    found = bounded_overlaps(predicted, boxes, truth.size) if truth.size else np.nan_to_num(overlaps(predicted, boxes))
    if not len(found):
        nothing = float("nan")
        return Scores({"ao": nothing, "sr50": nothing, "sr75": nothing}, {"success": np.full(101, np.nan)}, 0.0)
    values = {"ao": found.mean(), "sr50": (found > 0.5).mean(), "sr75": (found > 0.75).mean()}
    curve = (found[:, None] > THRESHOLDS).mean(axis=0)
    return Scores({name: float(value) for name, value in values.items()}, {"success": curve}, float(len(found)))


GOT10K = Convention("got10k", {"success": THRESHOLDS}, _score)
