"""The contract between the report and a task's section of it; see the package for an example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic

from ..reading import F, Facts, Result, Score

LISTED = 60  # metrics of the first table; more are folded


@dataclass(frozen=True)
class Row:
    """One metric, before and after training.

    Attributes:
        name: full name, such as ``test/fluent/auc``.
        kind: what the set is, ``test`` there; a key of :data:`vision_lowrank.viz.report.KINDS`.
        set: name of the set, ``fluent`` there.
        metric: name of the metric, ``auc`` there.
        label: its name in words.
        fraction: it lies in [0, 1] and is shown in percent.
        sign: 1 where more is better, -1 where less is.
        before: of the untrained model, over seeds; None where it is unknown.
        after: of the trained model.
        change: differences seed by seed; None where no seed has both.
        pairs: seed -> (before, after).
    """

    name: str
    kind: str
    set: str
    metric: str
    label: str
    fraction: bool
    sign: int
    before: Score | None
    after: Score
    change: Score | None
    pairs: Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class RunFolder(Generic[F]):
    """A run as a section reads it.

    Attributes:
        path: the run's folder.
        seeds: seed -> its folder, of all seeds that have begun.
        result: content of ``result.json``; None while the run goes on.
        rows: one for every metric, test sets first; empty while the run goes on.
    """

    path: Path
    seeds: Mapping[str, Path]
    result: Result[F] | None
    rows: list[Row]

    @property
    def facts(self) -> dict[str, F]:
        """Seed -> its facts; empty while the run goes on."""
        return {seed: one.facts for seed, one in self.result.seeds.items()} if self.result else {}


class ReportSection(Generic[F]):
    """What the report of a task shows; as it stands, the general report.

    The template extends ``report.html.jinja`` (or another section's) and fills some of its blocks, given the names of
    :meth:`context` and those of the general page: ``result``, ``facts`` (the first seed's), ``sections`` (of the
    config), ``trained``, ``lead``, ``first_table`` and ``others`` (rows that are shown and that are folded) and
    ``artefact`` (its path). ``macros.html.jinja`` has tables of rows. The blocks::

        head             after "was trained": with which head
        amount           after "on DATA, using N pictures": of how many classes, or of what else
        results          the section Results with the first table and the folded ones: super() and more, or another
        note             its first sentences: what the metric of the first table means
        answers          sections after the learning curves, such as examples of right and wrong answers
        without_adapter  after "No adapter": what trained instead
        command          the command that uses the artefact
        python           how to use it in Python
        sources          what is known of data and model beside hashes

    Args:
        run: the run that is reported.

    Attributes:
        template: name of a file beside the one that defines the class, or of the general page.
        facts_model: reads ``facts`` of every seed.
        labels: metric -> its name in words; of others the underscores become spaces.
    """

    template: ClassVar[str] = "report.html.jinja"
    facts_model: ClassVar[type[Facts]] = Facts
    labels: ClassVar[Mapping[str, str]] = {}

    def __init__(self, run: RunFolder[F]) -> None:
        self.run = run

    @property
    def rows(self) -> list[Row]:
        """The rows of the general tables; a section that shows some in its own leaves them out."""
        return self.run.rows

    @cached_property
    def first_table(self) -> list[Row]:
        """Those of the first table: the metric that the task leads with, on every set."""
        wanted = self.run.result.headline if self.run.result else ""
        for metric in (wanted, *(row.metric for row in self.rows[:1])):
            if found := [row for row in self.rows if row.metric == metric]:
                return found[:LISTED]
        return []

    @property
    def lead(self) -> Row | None:
        """The number in the sentence at the top."""
        return self.first_table[0] if self.first_table else None

    def context(self) -> dict[str, Any]:
        """Return what the template shows, by name; only plots may be markup.

        Raises:
            ArtefactError: a file of the run is damaged.
        """
        return {}
