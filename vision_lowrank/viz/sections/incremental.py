"""The section "Session after session", of runs that learn classes in sessions 0…T, beside a classifier's sections.

It shows the metrics ``session/t/NAME`` (after session t) and ``incremental/NAME`` (of the whole sequence), all
fractions, which :mod:`vision_lowrank.metrics.incremental` defines, and from ``facts.incremental`` of the first seed::

    classes               names of all classes in the order of the sessions, (C,)
    matrix.classes        number of classes that each session brings, (T + 1,)
    matrix.accuracies     T + 1 rows: a_{t,i}, accuracy after session t on the classes of session i <= t
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from markupsafe import Markup
from pydantic import BaseModel, Field, model_validator

from ...metrics.names import sign
from ...registry import register
from .. import plots
from .base import Row
from .classification import ClassificationFacts, ClassificationSection

PREFIXES = ("session/", "incremental/")
LABELS = {
    "accuracy": "accuracy",
    "last_accuracy": "accuracy after the last session",
    "average_accuracy": "accuracy, mean over sessions",
    "base_accuracy": "accuracy, base classes",
    "new_accuracy": "accuracy, new classes",
    "harmonic_mean": "harmonic mean of base and new classes",
    "average_harmonic_mean": "harmonic mean, mean over sessions",
    "performance_drop": "drop from the first to the last session",
    "forgetting": "forgetting, mean over sessions",
    "base_forgetting": "forgetting of the base classes",
    "backward_transfer": "backward transfer",
    "gacc/0": "generalised accuracy, new classes only",
    "gacc/0.5": "generalised accuracy, base classes count half",
    "gacc/1": "generalised accuracy, all classes alike",
    "gacc_auc": "generalised accuracy, area",
    "average_gacc_auc": "generalised accuracy, area, mean over sessions",
    "base_only_accuracy": "base classes among themselves",
    "base_only_forgetting": "forgetting of base classes among themselves",
}


class Matrix(BaseModel):
    """Sizes of the sessions and accuracies a_{t,i}."""

    classes: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    accuracies: list[list[Annotated[float, Field(ge=0, le=1)]]]

    @model_validator(mode="after")
    def _triangular(self) -> Matrix:
        if [len(row) for row in self.accuracies] != [*range(1, len(self.classes) + 1)]:
            raise ValueError(f"accuracies are not {len(self.classes)} rows of 1, 2, … values, one per session")
        return self


class SessionFacts(BaseModel):
    """``facts.incremental`` of a seed."""

    classes: list[str]
    matrix: Matrix

    @model_validator(mode="after")
    def _all_named(self) -> SessionFacts:
        if len(self.classes) != sum(self.matrix.classes):
            raise ValueError(f"{len(self.classes)} names for the matrix's {sum(self.matrix.classes)} classes")
        return self

    @property
    def groups(self) -> list[list[str]]:
        """The classes that each session brings."""
        names = iter(self.classes)
        return [list(itertools.islice(names, size)) for size in self.matrix.classes]


class IncrementalFacts(ClassificationFacts):
    """Facts of a seed, with the sessions."""

    incremental: SessionFacts | None = None


@dataclass(frozen=True)
class SessionRow(Row):
    """A metric of the session `session`, or of the whole sequence where it is empty."""

    session: str = ""


@register("report", "incremental", summary="accuracy after every session, and what a classifier's report shows")
class IncrementalSection(ClassificationSection[IncrementalFacts]):
    """Metrics of the sessions, which the general tables leave out."""

    template = "incremental.html.jinja"
    facts_model = IncrementalFacts

    @cached_property
    def rows(self) -> list[Row]:
        """Those of no session, where there are sessions."""
        shown = PREFIXES if self._after_sessions else ()
        return [row for row in self.run.rows if not row.name.startswith(shown)]

    def context(self) -> dict[str, Any]:
        """Return what a classifier's section shows, and ``sessions``."""
        return super().context() | {"sessions": self._sessions()}

    @cached_property
    def _after_sessions(self) -> list[Row]:
        """The accuracy after session 0, 1, …"""
        named = {row.name: row for row in self.run.rows}
        numbers = itertools.takewhile(lambda t: f"session/{t}/accuracy" in named, itertools.count())
        return [named[f"session/{t}/accuracy"] for t in numbers]

    def _sessions(self) -> dict[str, Any] | None:
        """Return curve, rows of the whole sequence and of each session, and the first seed's facts.

        The result is None without sessions, the curve where a mean is unknown. Facts that are None leave out the
        accuracies by group of classes.
        """
        if not self._after_sessions:
            return None
        rows = self.run.rows
        before, after = (_points(self._after_sessions, when) for when in ("before", "after"))
        split = [(row.name.split("/", 2), row) for row in rows if row.name.startswith("session/")]
        whole = [_labelled(row, row.name.partition("/")[2]) for row in rows if row.name.startswith("incremental/")]
        order = {metric: place for place, metric in enumerate(LABELS)}
        return {
            "curve": Markup(plots.session_curves({"trained": after}, before)) if after else None,
            "summary": sorted(whole, key=lambda row: order.get(row.metric, len(order))),
            "each": [_labelled(row, parts[2], parts[1]) for parts, row in split if len(parts) == 3],
            "facts": next(iter(self.run.facts.values())).incremental,
        }


def _points(rows: Sequence[Row], when: str) -> list[tuple[float, float]]:
    """Return (mean, std) of every row; empty where one is unknown."""
    scores = [getattr(row, when) for row in rows]
    known = all(score is not None and score.mean is not None for score in scores)
    return [(score.mean, score.std or 0.0) for score in scores] if known else []


def _labelled(row: Row, metric: str, session: str = "") -> SessionRow:
    label = LABELS.get(metric, metric.replace("_", " "))
    return SessionRow(**vars(row) | {"metric": metric, "label": label, "sign": sign(metric)}, session=session)
