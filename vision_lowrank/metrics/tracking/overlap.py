"""How far a predicted box is from the true one, frame by frame. Boxes are left, top, width, height in pixels.

A row with NaN gives NaN; what counts instead, where the target is not to be seen, is a convention's affair.
"""

from __future__ import annotations

import numpy as np

EPS = np.finfo(np.float64).eps


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Compute the IoU of boxes row by row, (L, 4) and (L, 4) xywh -> (L,); NaN where both have no area.

    The inclusive form of the toolkits, last pixel = left + width - 1 and width = last - first + 1, is the same number.
    """
    low = np.maximum(one[:, :2], other[:, :2])
    high = np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    both = np.clip(high - low, 0, None).prod(axis=1)
    either = one[:, 2:].prod(axis=1) + other[:, 2:].prod(axis=1) - both
    return np.divide(both, either, out=np.full(len(both), np.nan), where=either != 0)


def center_errors(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute the distance of the boxes' middle pixels, xy + (wh - 1) / 2, in pixels; (L, 4) and (L, 4) -> (L,)."""
    return _distance(_middle(predicted), _middle(truth))


def normalized_center_errors(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute the same distance with x in true widths and y in true heights; (L, 4) and (L, 4) -> (L,).

    Infinite or NaN where the true box has no area.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return _distance(_middle(predicted) / truth[:, 2:], _middle(truth) / truth[:, 2:])


def bounded_overlaps(one: np.ndarray, other: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """Compute the IoU of boxes after both are put inside a picture of `size` (width, height), as got10k's toolkit does.

    Its rule: left and top are clipped to the picture first, then the sides to what is left of it. So a box that begins
    left of the picture is moved in, not cut.
    """
    inside = []
    for boxes in (one, other):
        corner = np.clip(boxes[:, :2], 0, size)
        inside.append(np.concatenate([corner, np.clip(boxes[:, 2:], 0, np.asarray(size) - corner)], axis=1))
    low = np.maximum(inside[0][:, :2], inside[1][:, :2])
    high = np.minimum(*(boxes[:, :2] + boxes[:, 2:] for boxes in inside))
    both = np.clip(high - low, 0, None).prod(axis=1)
    either = inside[0][:, 2:].prod(axis=1) + inside[1][:, 2:].prod(axis=1) - both
    return np.clip(both / (either + EPS), 0, 1)


def _middle(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, :2] + (boxes[:, 2:] - 1) / 2


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.sqrt(((one - other) ** 2).sum(axis=1))
