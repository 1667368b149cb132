"""Sections of classifiers: the confusion matrix of a test set and the worst mistakes.

It shows, beside the general tables, from the folder of every seed::

    details.json      classes: their names, (C,); confusion: test set -> (C, C) numbers of pictures, row = true class
    mistakes.json     the most confident wrong answers with small pictures

A file that is missing leaves its part out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
from markupsafe import Markup
from pydantic import Field

from ...errors import ArtefactError
from ...registry import register
from .. import plots
from ..reading import Checked, Facts, Picture, read_checked
from .base import ReportSection, RunFolder

MATRIX_LIMIT = 60  # classes; a larger confusion matrix is unreadable, its worst pairs are listed instead
MISTAKES = 24


class ClassificationFacts(Facts):
    """Facts of a seed: how many classes, and the prompts' templates."""

    classes: int | None = Field(None, ge=1)
    templates: list[str] = Field(default_factory=list)


class Details(Checked):
    """``details.json``."""

    classes: list[str] = Field(default_factory=list)
    confusion: dict[str, list[list[int]]] = Field(default_factory=dict)


class Mistake(Checked):
    """One wrongly classified picture."""

    set: str = ""
    key: str
    true: str
    predicted: str
    probability: float
    image: Picture = ""


C = TypeVar("C", bound=ClassificationFacts)


@register("report", "fewshot", summary="confusion matrix, worst mistakes, prompts")
@register("report", "zeroshot", summary="confusion matrix, worst mistakes, prompts")
@register("report", "pretrain_clip", summary="confusion matrix, worst mistakes, prompts")
class ClassificationSection(ReportSection[C]):
    """Number of classes, prompts, confusion matrix and worst mistakes."""

    template = "classification.html.jinja"
    facts_model = ClassificationFacts
    labels: ClassVar = {"class_accuracy": "accuracy, mean over classes", "top5": "top-5 accuracy"}

    def context(self) -> dict[str, Any]:
        """Return ``classes`` (names), ``confusion`` and ``mistakes``."""
        found = {seed: read_checked(folder / "details.json", Details) for seed, folder in self.run.seeds.items()}
        known = {seed: details for seed, details in found.items() if details}
        return {
            "classes": next((details.classes for details in known.values()), []),
            "confusion": _confusion(self.run, known),
            "mistakes": _mistakes(self.run),
        }


def _mistakes(run: RunFolder) -> dict[str, Any] | None:
    """Return the worst mistakes of the first seed that has some."""
    for seed, folder in run.seeds.items():
        if found := read_checked(folder / "mistakes.json", list[Mistake]):
            return {"seed": seed, "worst": found[:MISTAKES]}
    return None


def _confusion(run: RunFolder, details: Mapping[str, Details]) -> dict[str, Any] | None:
    """Return the first test set's confusion matrix, summed over seeds, and its most confused pairs."""
    first = next(iter(details.values()), Details())
    name, classes = next(iter(first.confusion), None), first.classes
    if name is None or not classes:
        return None
    total = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for seed, own in details.items():
        counts = own.confusion.get(name, [])
        if own.classes != classes or [len(row) for row in counts] != [len(classes)] * len(classes):
            raise ArtefactError(
                f"{run.seeds[seed] / 'details.json'}: damaged at confusion.{name} (not {len(classes)} rows and "
                "columns for the first seed's classes): run the evaluation again."
            )
        total += counts
    readable = len(classes) <= MATRIX_LIMIT
    return {
        "set": name.removeprefix("test/"),
        "seeds": len(details),
        "matrix": Markup(plots.confusion(total, classes)) if readable else None,
        "pairs": _confused_pairs(total, classes)[: 10 if readable else 20],
    }


def _confused_pairs(total: np.ndarray, classes: Sequence[str]) -> list[tuple[int, float, str, str]]:
    """Return (pictures, share of the true class, true class, answer) of all wrong answers, the most frequent first."""
    wrong = np.argwhere(total * (1 - np.eye(len(classes), dtype=np.int64)))
    pairs = [(int(total[i, j]), float(total[i, j] / total[i].sum()), classes[i], classes[j]) for i, j in wrong]
    return sorted(pairs, key=lambda pair: (-pair[0], -pair[1], pair[2:]))
