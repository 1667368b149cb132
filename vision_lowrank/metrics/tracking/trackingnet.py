"""TrackingNet's server: whole pixels, curves of 21 points, areas by the trapezoid rule.

All boxes are rounded and the first one is the true one. ``success`` is the share of frames with IoU >= t at t = 0,
0.05, …, 1; ``precision`` with an error <= 0, 2.5, …, 50 pixels; ``normalized_precision`` with an error <= 0, 0.025, …,
0.5 true sides. Each metric is the area under its curve, the x axis scaled to [0, 1].
"""

from __future__ import annotations

import numpy as np

from .base import Convention, Prediction, Scores, Truth
from .overlap import center_errors, overlaps
from .sanitise import check_boxes, fitted

POINTS = np.arange(21) / 20
THRESHOLDS = {"success": POINTS, "precision": POINTS * 50, "normalized_precision": np.arange(21) / 40}


def _score(prediction: Prediction, truth: Truth, benchmark: str) -> Scores:
    """Score one run; frames without a true box fail.

    Raises:
        DataError: there are fewer boxes than frames, or a number is not finite.
    """
    predicted = fitted(prediction, truth)
    check_boxes(predicted, prediction.source)
    predicted, boxes = np.round(predicted), np.round(truth.boxes)
    predicted[0] = boxes[0]
    success, precision, normalized = THRESHOLDS.values()
    curves = {
        "success": (overlaps(predicted, boxes)[:, None] >= success).mean(axis=0),
        "precision": (center_errors(predicted, boxes)[:, None] <= precision).mean(axis=0),
        "normalized_precision": (_sides(predicted, boxes)[:, None] <= normalized).mean(axis=0),
    }
    areas = {name: float((curve[1:] + curve[:-1]).sum() / 40) for name, curve in curves.items()}
    return Scores({"success_auc": areas.pop("success"), **areas}, curves)


def _sides(predicted: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Compute the distance of middles in true sides; subtracted before it is divided, as thresholds are met exactly."""
    apart = predicted[:, :2] - boxes[:, :2] + (predicted[:, 2:] - boxes[:, 2:]) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(((apart / boxes[:, 2:]) ** 2).sum(axis=1))


TRACKINGNET = Convention("trackingnet", THRESHOLDS, _score)
