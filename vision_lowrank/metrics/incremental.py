"""Metrics of class-incremental learning, all computed from exact counts.

After session t (t = 0…T) every test picture of the C_t classes seen so far is classified among those classes. A
:class:`SessionMatrix` keeps how many pictures of each class were right; fractions in [0, 1] follow:

* a_{t,i}, accuracy after session t over the pictures of the classes that session i <= t brought;
* ``accuracy`` A_t, over the pictures of all classes seen: the mean of a_{t,i} weighted by numbers of pictures;
  ``base_accuracy`` A_t^b = a_{t,0}; ``new_accuracy`` A_t^n, over the pictures of sessions 1…t;
* ``average_accuracy`` mean_t A_t, and ``performance_drop`` A_0 - A_T;
* ``harmonic_mean`` 2 A_t^b A_t^n / (A_t^b + A_t^n), 0 where both are 0, undefined at t = 0;
* ``forgetting`` mean_{i<T} (max_{t>=i} a_{t,i} - a_{T,i}) (Chaudhry et al. 2018, as in LAMDA-PILOT);
  ``base_forgetting`` A_0^b - A_T^b; ``backward_transfer`` mean_{i<T} (a_{T,i} - a_{i,i});
* ``gacc`` of a weight w in [0, 1] (after Tang et al. 2024), where b and n are numbers of base and new classes and B, N
  the means of their classes' accuracies: g(w) = (w b B + n N) / (w b + n). w = 1 is the class-balanced accuracy, w = 0
  counts new classes only. ``gacc_auc`` = ∫₀¹ g(w) dw = B + (N - B) (n / b) ln(1 + b / n);
* ``base_only_accuracy``, of the base pictures classified among base classes only. What base accuracy loses beyond
  ``base_only_forgetting`` is competition from new logits, not a changed representation.

What is undefined is left out, never 0 or NaN. Where only counts per session are known, let each session be one class:
all metrics but gAcc are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .classification import harmonic_mean

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SessionMatrix:
    """Right answers of every class after every session, from which every metric is computed.

    Attributes:
        classes: number of classes that each session brings, (T + 1,), all at least 1.
        totals: test pictures of each class, (C,), all at least 1; classes in the order of the sessions.
        correct: T + 1 rows; entry c of row t counts the pictures of class c that are right after session t, c < C_t.
        base_only: right base pictures after each session, classified among base classes only, (T + 1,); empty where
            that was not measured.

    Raises:
        UserError: sizes do not fit, or a count lies outside what it counts.
    """

    classes: tuple[int, ...]
    totals: tuple[int, ...]
    correct: tuple[tuple[int, ...], ...]
    base_only: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.classes or min(self.classes) < 1:
            raise UserError(f"session matrix: classes are {list(self.classes)}: give each session 1 or more.")
        if len(self.totals) != sum(self.classes) or min(self.totals) < 1:
            raise UserError(
                f"session matrix: {len(self.totals)} totals, the smallest {min(self.totals, default=0)}: "
                f"give one for each of {sum(self.classes)} classes, 1 test picture or more."
            )
        if len(self.correct) != len(self.classes):
            raise UserError(
                f"session matrix: {len(self.correct)} rows for {len(self.classes)} sessions: give one per session."
            )
        for session, row in enumerate(self.correct):
            if len(row) != self.seen(session):
                raise UserError(
                    f"session matrix: row {session} has {len(row)} classes, but {self.seen(session)} are seen by then."
                )
            wrong = [label for label, right in enumerate(row) if not 0 <= right <= self.totals[label]]
            if wrong:
                raise UserError(
                    f"session matrix: after session {session} class {wrong[0]} has {row[wrong[0]]} right of "
                    f"{self.totals[wrong[0]]} pictures: counts lie between 0 and the total."
                )
        base = sum(self.totals[: self.seen(0)])
        if self.base_only and len(self.base_only) != len(self.classes):
            raise UserError(
                f"session matrix: base_only has {len(self.base_only)} of {len(self.classes)} sessions: give all."
            )
        if any(not 0 <= right <= base for right in self.base_only):
            raise UserError(f"session matrix: base_only counts must lie between 0 and the {base} base pictures.")

    @classmethod
    def from_predictions(
        cls,
        classes: Sequence[int],
        labels: Sequence[Tensor],
        predictions: Sequence[Tensor],
        base_predictions: Sequence[Tensor] = (),
    ) -> SessionMatrix:
        """Count the right answers of T + 1 evaluations, each in any order of its pictures.

        Args:
            classes: number of classes that each session brings.
            labels: T + 1 tensors (n_t,) int64, the test pictures of all classes seen, 0 <= label < C_t.
            predictions: T + 1 tensors (n_t,) int64; a class not seen yet is a wrong answer.
            base_predictions: the same restricted to base classes; entries of other pictures are ignored.

        Raises:
            UserError: numbers of evaluations or shapes differ, a label is not seen yet, a class has no pictures or not
                the same number in every evaluation.
        """
        if not len(classes) == len(labels) == len(predictions) or len(base_predictions) not in (0, len(classes)):
            raise UserError(
                f"{len(classes)} sessions with {len(labels)} labels, {len(predictions)} predictions and "
                f"{len(base_predictions)} base predictions: give one of each per session."
            )
        seen = [sum(classes[: session + 1]) for session in range(len(classes))]
        counts = [class_counts(*each) for each in zip(labels, predictions, seen, strict=True)]
        totals = counts[-1][1] if counts else ()
        for session, (_, present) in enumerate(counts):
            if present != totals[: seen[session]]:
                label = next(c for c, total in enumerate(present) if total != totals[c])
                raise UserError(
                    f"class {label} has {present[label]} test pictures after session {session} and {totals[label]} "
                    "after the last: evaluate all test pictures of the classes seen."
                )
        restricted = [class_counts(*each)[0] for each in zip(labels, base_predictions, seen, strict=False)]
        base_only = tuple(sum(right[: seen[0]]) for right in restricted)
        return cls(tuple(classes), totals, tuple(right for right, _ in counts), base_only)

    def seen(self, session: int) -> int:
        """Count the classes seen up to and including a session, C_t; 0 for session -1."""
        return sum(self.classes[: session + 1])

    def accuracy(self, session: int, first: int = 0, end: int | None = None) -> float:
        """Compute accuracy after a session over pictures of classes `first` to `end` - 1; default all classes seen."""
        row = self.correct[session][first:end]
        return sum(row) / sum(self.totals[first : first + len(row)])

    def accuracies(self) -> Rows:
        """Compute the matrix a_{t,i}: T + 1 rows, row t with t + 1 entries."""
        return tuple(
            tuple(self.accuracy(t, self.seen(i - 1), self.seen(i)) for i in range(t + 1))
            for t in range(len(self.classes))
        )

    def class_accuracies(self) -> Rows:
        """Compute the accuracy of every class after every session: T + 1 rows, row t with C_t entries."""
        return tuple(
            tuple(right / total for right, total in zip(row, self.totals, strict=False)) for row in self.correct
        )

    def gacc(self, session: int, weight: float) -> float:
        """Compute the generalised average accuracy g(w) after a session t >= 1.

        Raises:
            UserError: `weight` lies outside [0, 1], or the session has no new classes.
        """
        if not 0 <= weight <= 1:
            raise UserError(f"gAcc weight {weight:g} is outside [0, 1].")
        base, new, b, n = self._balanced(session)
        return (weight * b * base + n * new) / (weight * b + n)

    def gacc_auc(self, session: int) -> float:
        """Compute the area under g(w) over [0, 1] after a session t >= 1.

        Raises:
            UserError: the session has no new classes.
        """
        base, new, b, n = self._balanced(session)
        return base + (new - base) * n / b * math.log1p(b / n)

    def as_json(self) -> dict[str, Any]:
        """Convert to JSON's types: the counts, and the matrix a_{t,i} for readers."""
        return {
            "classes": list(self.classes),
            "totals": list(self.totals),
            "correct": [list(row) for row in self.correct],
            "base_only": list(self.base_only),
            "accuracies": [list(row) for row in self.accuracies()],
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> SessionMatrix:
        """Build the matrix from what :meth:`as_json` wrote; only counts are read.

        Raises:
            UserError: keys are missing, or values are not whole numbers that fit together.
        """
        try:
            correct = tuple(_whole(row) for row in tree["correct"])
            return cls(_whole(tree["classes"]), _whole(tree["totals"]), correct, _whole(tree.get("base_only", ())))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(
                "session matrix: needs `classes`, `totals` and rows `correct` of whole numbers, as as_json() writes."
            ) from None

    def _balanced(self, session: int) -> tuple[float, float, int, int]:
        """Compute class-averaged base and new accuracy, and the numbers of base and new classes."""
        if not 1 <= session < len(self.classes):
            raise UserError(f"gAcc of session {session}: choose one with new classes, 1 to {len(self.classes) - 1}.")
        row, b = self.class_accuracies()[session], self.classes[0]
        return fmean(row[:b]), fmean(row[b:]), b, len(row) - b


def class_counts(labels: Tensor, predictions: Tensor, classes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Count right answers and pictures of each class; the counts of batches add up to those of the whole.

    Args:
        labels: (n,) int64, 0 <= label < `classes`.
        predictions: (n,) int64.
        classes: C.

    Returns:
        Right answers (C,) and pictures (C,).

    Raises:
        UserError: shapes differ, or a label is outside 0…C-1.
    """
    if labels.shape != predictions.shape or labels.dim() != 1:
        shapes = f"{tuple(labels.shape)} and {tuple(predictions.shape)}"
        raise UserError(f"labels and predictions have shapes {shapes}: give (n,) and (n,) of the same pictures.")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(f"labels go from {int(labels.min())} to {int(labels.max())}, but {classes} classes are seen.")
    totals = torch.bincount(labels, minlength=classes)
    correct = torch.bincount(labels[labels == predictions], minlength=classes)
    return tuple(correct.tolist()), tuple(totals.tolist())


def incremental_metrics(matrix: SessionMatrix, weights: Sequence[float] = (0.0, 0.5, 1.0)) -> dict[str, float]:
    """Compute every metric of the module docstring, fractions.

    Args:
        matrix: counts of all sessions.
        weights: w of ``gacc/w``.

    Returns:
        ``session/t/NAME`` for the values after each session, and the summaries under their own names; a metric that
        has a value after every session stands there for the last, ``average_NAME`` is its mean (for the harmonic mean
        and gAcc over t >= 1). With one session, what needs a second one is left out.

    Raises:
        UserError: a weight lies outside [0, 1].
    """
    last = len(matrix.classes) - 1
    each = [_session_metrics(matrix, session) for session in range(last + 1)]
    found = {f"session/{session}/{name}": value for session, row in enumerate(each) for name, value in row.items()}
    found |= {"last_accuracy": each[last]["accuracy"], "average_accuracy": fmean(row["accuracy"] for row in each)}
    if not last:
        return found
    a = matrix.accuracies()
    best = [max(a[t][i] for t in range(i, last + 1)) for i in range(last)]
    found |= {
        "performance_drop": each[0]["accuracy"] - each[last]["accuracy"],
        "harmonic_mean": each[last]["harmonic_mean"],
        "average_harmonic_mean": fmean(row["harmonic_mean"] for row in each[1:]),
        "forgetting": fmean(best[i] - a[last][i] for i in range(last)),
        "base_forgetting": a[0][0] - a[last][0],
        "backward_transfer": fmean(a[last][i] - a[i][i] for i in range(last)),
        "base_accuracy": each[last]["base_accuracy"],
        "new_accuracy": each[last]["new_accuracy"],
        "gacc_auc": each[last]["gacc_auc"],
        "average_gacc_auc": fmean(row["gacc_auc"] for row in each[1:]),
    }
    found |= {f"gacc/{weight:g}": matrix.gacc(last, weight) for weight in weights}
    if matrix.base_only:
        found["base_only_accuracy"] = each[last]["base_only_accuracy"]
        found["base_only_forgetting"] = each[0]["base_only_accuracy"] - each[last]["base_only_accuracy"]
    return found


def _session_metrics(matrix: SessionMatrix, session: int) -> dict[str, float]:
    base = matrix.classes[0]
    found = {"accuracy": matrix.accuracy(session), "base_accuracy": matrix.accuracy(session, 0, base)}
    if session:
        new = matrix.accuracy(session, base)
        found |= {"new_accuracy": new, "harmonic_mean": harmonic_mean(found["base_accuracy"], new)}
        found["gacc_auc"] = matrix.gacc_auc(session)
    if matrix.base_only:
        found["base_only_accuracy"] = matrix.base_only[session] / sum(matrix.totals[:base])
    return found


def _whole(values: Sequence[Any]) -> tuple[int, ...]:
    """Return whole numbers as a tuple; anything else, booleans included, is a TypeError."""
    if isinstance(values, str) or any(type(value) is not int for value in values):
        raise TypeError
    return tuple(values)
