"""Was this picture edited? Metrics of one score per picture, s = P(edited).

A picture is called edited where s >= threshold; TP, FP, FN, TN count pictures, class "edited" is the positive one.
Equal scores are one step of every curve, so that no metric depends on the order of pictures.

=====================  ================================================================================================
``accuracy``           (TP + TN) / N
``balanced_accuracy``  (recall + 1 - false_alarm_rate) / 2
``precision``          TP / (TP + FP), 0 where nothing is called edited
``recall``             TP / (TP + FN)
``f1``                 2 TP / (2 TP + FP + FN), of class edited
``false_alarm_rate``   FP / (FP + TN): real pictures called edited
``auc``                area under the ROC curve = P(s_edited > s_real) + P(s_edited = s_real) / 2
``ap``                 average precision, sum of (R_k - R_{k-1}) P_k over distinct scores, without interpolation
``tpr_at_fpr_1``       highest recall of any threshold whose false-alarm rate is at most 1 %; ``tpr_at_fpr_5`` 5 %
``ece``                expected calibration error of s: 15 bins of equal width over [0, 1],
                       sum of (share of pictures in the bin) |mean s - share edited|
``brier``              mean (s - y)^2, y = 1 for edited
=====================  ================================================================================================

What depends on how many real pictures there are (accuracy, precision, f1, ap, ece, brier) is also given as
``equal_mix/NAME``: each class carries half of the total weight, which is the mean over all 1:1 draws and needs no draw.
A metric that needs a class without pictures is None, never 0; :func:`missing` says why.

Definitions as in ManipBench's card (manipbench, metrics); ECE after Naeini et al. 2015 and Guo et al. 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError

Slices = dict[str, dict[str, float | str | None]]


def detection_report(scores: ArrayLike, edited: ArrayLike, threshold: float = 0.5) -> dict[str, float | None]:
    """Compute every metric of the module docstring.

    Args:
        scores: (N,) in [0, 1], P(edited).
        edited: (N,) bool.
        threshold: from validation, never from the set that is evaluated.

    Raises:
        UserError: shapes differ, or scores are not in [0, 1].
    """
    s, y = checked(scores, edited)
    called, reals, edits = s >= threshold, int((~y).sum()), int(y.sum())
    tp, fp = float((called & y).sum()), float((called & ~y).sum())
    recall, alarms = _ratio(tp, edits), _ratio(fp, reals)
    both = recall is not None and alarms is not None
    equal = _mix_report(s, y, called, np.where(y, 0.5 / max(edits, 1), 0.5 / max(reals, 1)))
    return {
        **_mix_report(s, y, called, np.ones(len(y))),
        "balanced_accuracy": (recall + 1 - alarms) / 2 if both else None,
        "recall": recall,
        "false_alarm_rate": alarms,
        "auc": roc_auc(s, y),
        "tpr_at_fpr_1": recall_at(s, y, 0.01),
        "tpr_at_fpr_5": recall_at(s, y, 0.05),
        **{f"equal_mix/{name}": value if both else None for name, value in equal.items()},
    }


def slice_report(
    scores: ArrayLike, edited: ArrayLike, codes: ArrayLike, names: Sequence[str], threshold: float = 0.5
) -> Slices:
    """Compute metrics of each editor or category: its edits against ALL real pictures, so that slices compare.

    Args:
        scores: (N,) in [0, 1].
        edited: (N,) bool.
        codes: (N,) int, index into `names`; -1 = not annotated: in no slice.
        names: of the slices; one that no picture has is left out.
        threshold: see :func:`detection_report`.

    Returns:
        By name: ``recall``, ``auc``, ``count`` of its edited pictures, and ``reason`` where one of them is None. The
        mean of recalls weighted by counts is the recall of all annotated edits.
    """
    s, y = checked(scores, edited)
    code = np.asarray(codes)
    report: Slices = {}
    for number in np.unique(code[code >= 0]):
        own = y & (code == number)
        rows = own | ~y
        entry: dict[str, float | str | None] = {
            "recall": _ratio(float((s[own] >= threshold).sum()), int(own.sum())),
            "auc": roc_auc(s[rows], y[rows]),
            "count": float(own.sum()),
        }
        if reason := missing(y[rows]):
            entry["reason"] = reason
        report[names[number]] = entry
    return report


def macro_average(slices: Slices, metric: str) -> float | None:
    """Average a metric over the slices where it is defined, each slice counting once; None where there is none."""
    values = [value for entry in slices.values() if isinstance(value := entry[metric], float)]
    return float(np.mean(values)) if values else None


def missing(edited: ArrayLike) -> str | None:
    """Tell why metrics that compare the classes are undefined, for readers; None where both classes occur."""
    y = np.asarray(edited, dtype=bool)
    if len(y) == 0:
        return "no pictures"
    return "no edited pictures" if not y.any() else "no real pictures" if y.all() else None


def roc_auc(scores: ArrayLike, edited: ArrayLike) -> float | None:
    """Compute the area under the ROC curve, ties half; exactly 0.5 for equal scores; None where a class is missing."""
    y = np.asarray(edited, dtype=bool)
    tp, fp = _curve(np.asarray(scores, dtype=np.float64), y, np.ones(len(y)))
    if missing(y):
        return None
    steps = np.diff(fp, prepend=0.0) * (tp + np.concatenate([[0.0], tp[:-1]])) / 2
    return float(steps.sum() / (tp[-1] * fp[-1]))


def average_precision(scores: ArrayLike, edited: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """Compute average precision without interpolation; None where nothing is edited.

    Args:
        scores: (N,).
        edited: (N,) bool.
        weights: (N,) of the pictures; default 1.
    """
    y = np.asarray(edited, dtype=bool)
    if not y.any():
        return None
    w = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    tp, fp = _curve(np.asarray(scores, dtype=np.float64), y, w)
    precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp + fp > 0)
    return float((np.diff(tp, prepend=0.0) * precision).sum() / tp[-1])


def recall_at(scores: ArrayLike, edited: ArrayLike, false_alarms: float) -> float | None:
    """Find the highest recall of any threshold with at most this false-alarm rate; None where a class is missing."""
    y = np.asarray(edited, dtype=bool)
    if missing(y):
        return None
    tp, fp = _curve(np.asarray(scores, dtype=np.float64), y, np.ones(len(y)))
    allowed = fp / fp[-1] <= false_alarms
    return float((tp[allowed] / tp[-1]).max(initial=0.0))


def reliability(
    probabilities: ArrayLike, edited: ArrayLike, bins: int = 15, weights: ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the reliability diagram: bin b holds b/bins <= p < (b+1)/bins, the last one also p = 1.

    Args:
        probabilities: (N,) in [0, 1].
        edited: (N,) bool.
        bins: number of bins of equal width.
        weights: (N,) of the pictures; default 1.

    Returns:
        Mean probability, share edited (both NaN in an empty bin) and share of all weight in the bin; each (bins,).
    """
    p, y = checked(probabilities, edited)
    w = np.ones(len(p)) if weights is None else np.asarray(weights, dtype=np.float64)
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    mass, of_p, of_y = (np.bincount(place, w * values, bins) for values in (np.ones(len(p)), p, y))
    empty = np.full(bins, np.nan)
    mean = np.divide(of_p, mass, out=empty.copy(), where=mass > 0)
    share = np.divide(of_y, mass, out=empty.copy(), where=mass > 0)
    return mean, share, mass / max(mass.sum(), np.finfo(float).tiny)


def expected_calibration_error(
    probabilities: ArrayLike, edited: ArrayLike, bins: int = 15, weights: ArrayLike | None = None
) -> float | None:
    """Compute ECE over :func:`reliability`'s bins; None for no pictures."""
    mean, share, mass = reliability(probabilities, edited, bins, weights)
    return float(np.nansum(mass * np.abs(mean - share))) if mass.any() else None


def checked(scores: ArrayLike, edited: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return scores as (N,) float64 and `edited` as (N,) bool.

    Raises:
        UserError: shapes differ, or scores are not in [0, 1].
    """
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(edited)
    if s.ndim != 1 or s.shape != y.shape:
        raise UserError(f"scores {s.shape} and labels {y.shape}: give one of each per picture, (N,) and (N,).")
    if not np.isin(y, (0, 1)).all():
        raise UserError("labels must say edited or not, 0 or 1: map other classes before scoring.")
    if not ((s >= 0) & (s <= 1)).all():
        raise UserError("scores must be probabilities in [0, 1]: apply the sigmoid, and look for NaN.")
    return s, y.astype(bool)


def _mix_report(s: np.ndarray, y: np.ndarray, called: np.ndarray, w: np.ndarray) -> Mapping[str, float | None]:
    """Compute the metrics that change with the mix of classes, pictures weighted by `w`."""
    tp, fp, fn = (float(w[which].sum()) for which in (called & y, called & ~y, ~called & y))
    known = bool(y.any() and not y.all())
    return {
        "accuracy": _ratio(float(w[called == y].sum()), w.sum()),
        "precision": (_ratio(tp, tp + fp) or 0.0) if known else None,
        "f1": _ratio(2 * tp, 2 * tp + fp + fn) if known else None,
        "ap": average_precision(s, y, w) if known else None,
        "ece": expected_calibration_error(s, y, weights=w),
        "brier": _ratio(float((w * (s - y) ** 2).sum()), w.sum()),
    }


def _curve(s: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum weights of edited and of real pictures at or above each distinct score, highest first; (K,) each."""
    order = np.argsort(-s, kind="stable")
    last = np.append(s[order][1:] != s[order][:-1], True)[: len(s)]
    return np.cumsum((w * y)[order])[last], np.cumsum((w * ~y)[order])[last]


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
