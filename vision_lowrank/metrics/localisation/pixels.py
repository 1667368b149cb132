"""Where was this picture edited? Metrics of a map of edited-area likelihood against a mask, per picture, then the mean.

:func:`pixel_row` reduces one picture to a row of numbers, :func:`pixel_report` computes every metric from the rows. So
nothing depends on batches or on processes: gather the rows, and remove what a padded sampler repeated by id,
``rows[np.unique(ids, return_index=True)[1]]``, which also puts them in the same order everywhere.

A pixel is predicted edited where its value is above the threshold (0.5). Pixels outside `valid` (padding) do not count.
Conventions: ``origin`` scores the map as it is; ``reverse`` scores 1 - map; ``double`` takes the better of the two for
each picture and metric, knowing the answer: an ORACLE, never to be compared with origin.

===============================  ======================================================================================
``pixel_f1``                     mean over pictures of 2 TP / (2 TP + FP + FN), origin
``pixel_iou``                    mean of TP / (TP + FP + FN)
``pixel_accuracy``               mean of (TP + TN) / all
``pixel_auc``                    mean ROC-AUC of the map, ties half, over pictures that have both kinds of pixel
``…_reverse``                    the four under the convention reverse
``…_double_oracle``              the four under the convention double
``pixel_pictures``               number of pictures in those means
``pixel_false_localisation``     share of real pictures with any pixel above the threshold
``pixel_false_area``             mean share of pixels above the threshold on real pictures
``pixel_real_pictures``          number of real pictures in those two
===============================  ======================================================================================

Real pictures have no edited pixel, where F1 is 0/0: they take no part in the means and count in false localisation
instead. An edited picture without an edited pixel that is valid (cut off) takes no part in either. Leave out edited
pictures that were regenerated as a whole (scope global) or have no mask.

IMDL-BenCo (arXiv 2406.10580) defines the conventions; it adds 1e-8 to denominators, scores an all-black mask as 0,
sorts pixels for the AUC without regard to ties, and computes at the model's resolution, as here where maps and masks
are given at that size.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ...errors import UserError
from ..image_level import roc_auc

Convention = Literal["origin", "reverse", "double"]

COLUMNS = ("tp", "fp", "fn", "tn", "reverse_tp", "reverse_fp", "reverse_fn", "reverse_tn", "auc")
SUFFIXES: dict[Convention, str] = {"origin": "", "reverse": "_reverse", "double": "_double_oracle"}


def pixel_row(
    prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, threshold: float = 0.5
) -> np.ndarray:
    """Compute the statistics of one picture.

    Args:
        prediction: (H, W) in [0, 1].
        truth: (H, W) bool, True where edited; all False for a real picture.
        valid: (H, W) bool, False where the picture was padded; default: all is valid.
        threshold: a pixel above it is predicted edited.

    Returns:
        (9,) float64, :data:`COLUMNS`: counts of pixels, and the AUC of origin, NaN without both kinds of pixel.

    Raises:
        UserError: shapes differ, no pixel is valid, or values are not in [0, 1].
    """
    p, y = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=bool)
    inside = np.ones(y.shape, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    if p.shape != y.shape or p.shape != inside.shape:
        raise UserError(f"map {p.shape}, mask {y.shape} and valid area {inside.shape} differ: bring them to one size.")
    p, y = p[inside], y[inside]
    if not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise UserError("a map needs one valid pixel or more, with values in [0, 1]: apply the sigmoid, look for NaN.")
    auc = roc_auc(p, y)
    return np.array([*_counts(p > threshold, y), *_counts(1 - p > threshold, y), np.nan if auc is None else auc])


def pixel_values(rows: np.ndarray, convention: Convention = "origin") -> dict[str, np.ndarray]:
    """Compute ``f1``, ``iou``, ``accuracy`` and ``auc`` per picture, each (N,); NaN where it has no edited pixel.

    Args:
        rows: (N, 9), of :func:`pixel_row`.
        convention: see the module docstring.
    """
    if convention == "double":
        one, other = pixel_values(rows, "origin"), pixel_values(rows, "reverse")
        return {name: np.maximum(one[name], other[name]) for name in one}
    tp, fp, fn, tn = rows[:, :4].T if convention == "origin" else rows[:, 4:8].T
    tp = np.where(tp + fn > 0, tp, np.nan)
    return {
        "f1": 2 * tp / (2 * tp + fp + fn),
        "iou": tp / (tp + fp + fn),
        "accuracy": (tp + tn) / (tp + fp + fn + tn),
        "auc": rows[:, 8] if convention == "origin" else 1 - rows[:, 8],
    }


def pixel_report(rows: ArrayLike, edited: ArrayLike) -> dict[str, float | None]:
    """Compute every metric of the module docstring; None where no picture has it.

    Args:
        rows: (N, 9), one :func:`pixel_row` per picture.
        edited: (N,) bool.

    Raises:
        UserError: shapes differ.
    """
    table, y = np.asarray(rows, dtype=np.float64).reshape(-1, len(COLUMNS)), np.asarray(edited, dtype=bool)
    if y.shape != (len(table),):
        raise UserError(f"{len(table)} pictures with labels {y.shape}: give one label per picture.")
    report: dict[str, float | None] = {}
    for convention, suffix in SUFFIXES.items():
        for name, values in pixel_values(table[y], convention).items():
            report[f"pixel_{name}{suffix}"] = _mean(values[~np.isnan(values)])
    tp, fp, fn, tn = table[~y][:, :4].T
    area = (tp + fp) / (tp + fp + fn + tn)
    return report | {
        "pixel_pictures": float((table[y][:, 0] + table[y][:, 2] > 0).sum()),
        "pixel_false_localisation": _mean(area > 0),
        "pixel_false_area": _mean(area),
        "pixel_real_pictures": float((~y).sum()),
    }


def _counts(called: np.ndarray, truth: np.ndarray) -> tuple[float, float, float, float]:
    hits, called_sum, truth_sum = float((called & truth).sum()), float(called.sum()), float(truth.sum())
    return hits, called_sum - hits, truth_sum - hits, len(truth) - called_sum - truth_sum + hits


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
