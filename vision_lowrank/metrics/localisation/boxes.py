"""Where was this picture edited? Metrics of predicted boxes against annotated ones, at the picture's original size.

:func:`judge_boxes` reduces one picture to a :class:`BoxOutcome`, :func:`box_report` computes every metric from these.

============================  =========================================================================================
``box_union_iou``             boxes of a picture rasterised to one mask: |P & G| / |P or G|, mean over pictures
``box_union_f1``              2 |P & G| / (|P| + |G|) of the same masks, mean
``box_matched_iou``           one-to-one assignment of the highest total IoU (Hungarian): total / max(#P, #G), mean
``box_pictures``              number of pictures in those means: edited ones with a box
``box_ap50``                  average precision at IoU 0.5
``box_ap``                    mean of average precision at IoU 0.50, 0.55, …, 0.95
``box_false_localisation``    share of real pictures with any box
``box_false_area``            mean share of the area that boxes cover on real pictures
``box_real_pictures``         number of real pictures in those two
============================  =========================================================================================

Predictions below the objectness threshold count in average precision only; a picture without a prediction has IoU 0.
A pixel belongs to a box that holds its centre; all boxes are cut at the picture's border.

Average precision is of one class over all pictures, real ones being pictures without annotated boxes. Per picture and
IoU level the boxes, highest score first, each take the free annotated box they overlap most, if that reaches the level.
Then AP = area under max_{r' >= r} precision(r') over recall r, at every point where recall changes (all-point
interpolation of Pascal VOC 2010; COCO's reads 101 points). Equal scores are one step.

:func:`baseline_report` gives the same for a constant box, the mean of the training boxes, and for the full picture: an
IoU means little until it is compared with these. Definitions as in ManipBench's card (manipbench, metrics).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from ...data.boxes import Boxes, pairwise_iou
from ...errors import UserError

LEVELS = np.arange(50, 100, 5) / 100
FULL_BOX = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class BoxOutcome:
    """What one picture contributes.

    Attributes:
        both: pixels in predicted and in annotated boxes.
        predicted: pixels in predicted boxes.
        annotated: pixels in annotated boxes.
        area: pixels of the picture.
        matched_iou: 0 where there is neither a predicted nor an annotated box.
        predictions: number of boxes at or above the objectness threshold.
        truths: number of annotated boxes.
        hits: (P, 11) float64: score of every box, whatever its score, and 1 where it is right at each of the 10 levels.
    """

    both: float
    predicted: float
    annotated: float
    area: float
    matched_iou: float
    predictions: int
    truths: int
    hits: np.ndarray


def judge_boxes(
    boxes: ArrayLike, scores: ArrayLike, truth: ArrayLike, size: tuple[int, int], threshold: float = 0.5
) -> BoxOutcome:
    """Compare the boxes of one picture.

    Args:
        boxes: (P, 4) xyxy in pixels of the original picture; after suppression of duplicates.
        scores: (P,) objectness in [0, 1].
        truth: (G, 4) xyxy annotated; none for a real picture.
        size: (width, height) of the picture.
        threshold: boxes of this objectness or more count in all but average precision.

    Raises:
        UserError: shapes are not these.
    """
    p, s, g = _boxes(boxes, size), np.asarray(scores, dtype=np.float64).reshape(-1), _boxes(truth, size)
    if len(s) != len(p):
        raise UserError(f"{len(p)} boxes with {len(s)} scores: give one score per box.")
    overlap, kept = pairwise_iou(p, g), s >= threshold
    assigned = linear_sum_assignment(overlap[kept], maximize=True)
    both, predicted, annotated = _areas(p[kept], g)
    return BoxOutcome(
        both=both,
        predicted=predicted,
        annotated=annotated,
        area=float(size[0] * size[1]),
        matched_iou=float(overlap[kept][assigned].sum() / max(kept.sum(), len(g), 1)),
        predictions=int(kept.sum()),
        truths=len(g),
        hits=_hits(s, overlap),
    )


def box_report(outcomes: Sequence[BoxOutcome], edited: ArrayLike) -> dict[str, float | None]:
    """Compute every metric of the module docstring; None where no picture has it.

    Args:
        outcomes: N; edited pictures without annotated boxes, or regenerated as a whole (scope global), left out.
        edited: (N,) bool.

    Raises:
        UserError: numbers differ.
    """
    y = np.asarray(edited, dtype=bool)
    if y.shape != (len(outcomes),):
        raise UserError(f"{len(outcomes)} pictures with labels {y.shape}: give one label per picture.")
    local = [each for each, is_edited in zip(outcomes, y, strict=True) if is_edited and each.truths]
    reals = [each for each, is_edited in zip(outcomes, y, strict=True) if not is_edited]
    precisions = average_precisions(outcomes)
    return {
        "box_union_iou": _mean([_over(o.both, o.predicted + o.annotated - o.both) for o in local]),
        "box_union_f1": _mean([_over(2 * o.both, o.predicted + o.annotated) for o in local]),
        "box_matched_iou": _mean([o.matched_iou for o in local]),
        "box_pictures": float(len(local)),
        "box_ap50": None if precisions is None else float(precisions[0]),
        "box_ap": None if precisions is None else float(precisions.mean()),
        "box_false_localisation": _mean([float(o.predictions > 0) for o in reals]),
        "box_false_area": _mean([o.predicted / o.area for o in reals]),
        "box_real_pictures": float(len(reals)),
    }


def baseline_report(
    truths: Sequence[ArrayLike], sizes: Sequence[tuple[int, int]], edited: ArrayLike, constant: ArrayLike
) -> dict[str, float | None]:
    """Compute what a box that ignores the picture scores: ``constant_box/NAME`` and ``full_box/NAME``.

    Args:
        truths: N arrays (G, 4), annotated boxes in pixels.
        sizes: N of (width, height).
        edited: (N,) bool.
        constant: (4,) of :func:`mean_box` over the TRAINING boxes.
    """
    report: dict[str, float | None] = {}
    for name, box in (("constant_box", constant), ("full_box", FULL_BOX)):
        shape = np.asarray(box, dtype=np.float64)
        outcomes = [
            judge_boxes(shape[None] * np.tile(size, 2), [1.0], truth, size)
            for truth, size in zip(truths, sizes, strict=True)
        ]
        report |= {f"{name}/{metric}": value for metric, value in box_report(outcomes, edited).items()}
    return report


def mean_box(truths: Sequence[ArrayLike], sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Average all boxes, (4,) xyxy as shares of width and height.

    Raises:
        UserError: there is no box.
    """
    shares = [_boxes(truth, size) / np.tile(size, 2) for truth, size in zip(truths, sizes, strict=True)]
    if not sum(map(len, shares)):
        raise UserError("mean box: the training set has no boxes: give it annotated ones, or leave out the baseline.")
    return np.concatenate(shares).mean(axis=0)


def average_precisions(outcomes: Sequence[BoxOutcome]) -> np.ndarray | None:
    """Compute all-point average precision at each of the 10 levels, (10,); None without any annotated box."""
    truths = sum(each.truths for each in outcomes)
    if not truths:
        return None
    table = np.concatenate([each.hits for each in outcomes])
    table = table[np.argsort(-table[:, 0], kind="stable")]
    last = np.append(table[1:, 0] != table[:-1, 0], True)[: len(table)]
    tp = np.cumsum(table[:, 1:], axis=0)[last]
    precision = tp / np.arange(1, len(table) + 1)[last, None]
    highest = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    return (np.diff(tp, axis=0, prepend=0.0) * highest).sum(axis=0) / truths


def _hits(scores: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """Assign boxes greedily at every level; of equal scores the box that fits best comes first."""
    right = np.zeros((len(scores), len(LEVELS)))
    free = np.ones((len(LEVELS), overlap.shape[1]), dtype=bool)
    best = overlap.max(axis=1, initial=0.0)
    for box in np.lexsort((-best, -scores)) if overlap.shape[1] else ():
        candidates = np.where(free & (overlap[box] >= LEVELS[:, None]), overlap[box], -1.0)
        taken, level = candidates.argmax(axis=1), np.flatnonzero(candidates.max(axis=1) >= 0)
        free[level, taken[level]] = False
        right[box, level] = 1
    return np.column_stack([scores, right])


def _areas(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Count pixels in both, the first and the second union of boxes.

    The edges divide the picture into few cells, each wholly inside or outside of every box, so no mask is drawn.
    """
    edges = np.ceil(np.concatenate([one, other]) - 0.5)
    xs, ys = np.unique(edges[:, [0, 2]]), np.unique(edges[:, [1, 3]])
    across = (edges[:, 0, None] <= xs[:-1]) & (xs[:-1] < edges[:, 2, None])
    down = (edges[:, 1, None] <= ys[:-1]) & (ys[:-1] < edges[:, 3, None])
    cells = down[:, :, None] & across[:, None, :]
    first, second = cells[: len(one)].any(axis=0), cells[len(one) :].any(axis=0)
    pixels = np.outer(np.diff(ys), np.diff(xs))
    return float(pixels[first & second].sum()), float(pixels[first].sum()), float(pixels[second].sum())


def _boxes(boxes: ArrayLike, size: tuple[int, int]) -> np.ndarray:
    return Boxes(boxes, size=size).clip().xyxy


def _over(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
