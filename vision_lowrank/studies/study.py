"""A study: variants under the same conditions, each with several seeds, as jobs in two waves.

Where a variant has several learning rates to choose from, the first wave trains its first seed at each; the one with
the best validation metric (the task's ``selects_by``) is taken, and no test data is looked at. The second wave trains
every seed of every variant at its rate; a rate at which one of them diverges gives way to the next best. Where the
study has a reference, a third one times the steps of all variants beside the reference's. Waves go over all studies of
a call. A study's folder::

    VARIANT/lr-RATE/seed-N/          the runs, as :mod:`.run` makes them
    baseline-HASH.json               evaluations of the model without training that several runs share
    VARIANT/cost.json                time of a step beside the reference's
    study.json, .md, .csv, .tex …    what :mod:`.pages` writes

Calling it again goes on where it stopped: finished seeds are read back, unfinished ones resume from their checkpoints.
A job that cannot be done, or whose loss diverges, costs its own cell of the table, and is named there with its reason.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ..config import RunConfig, environment, to_tree, validate
from ..errors import UserError
from ..lock import locked
from ..metrics.names import sign
from .columns import facts_of
from .folder import open_run
from .job import Timing, Training
from .launch import Launcher, Say, here
from .pages import write_study
from .rates import at_rate
from .run import read_result, summarise
from .variants import Variant, check_names, differing, one_line

Row = dict[str, Any]
Result = dict[str, Any]


def quiet(line: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Study:
    """What to run.

    Attributes:
        folder: where everything goes.
        title: of its table.
        variants: at least one; their names differ.
        reference: what every variant's step is timed beside; None times nothing.
        facts: what its file says of it beside the results.
        settings: list the settings in which its variants differ, in place of columns for learning rate and rank.
    """

    folder: Path
    title: str
    variants: Sequence[Variant]
    reference: RunConfig | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    settings: bool = True


def run_study(study: Study, launch: Launcher = here, say: Say = quiet) -> Result:
    """Run what is missing of a study and write its files.

    Args:
        study: what to run.
        launch: where its jobs run.
        say: told what is being done, one line at a time.

    Returns:
        What ``study.json`` holds.

    Raises:
        UserError: no variant could run; the message is the first one's reason.
    """
    [result] = run_studies([study], launch, say)
    if result["baseline"] is None:
        raise UserError(result["rows"][0]["failed"])
    return result


def run_studies(studies: Sequence[Study], launch: Launcher = here, say: Say = quiet) -> list[Result]:
    """Run several studies as one set of jobs and write the files of each.

    As :func:`run_study`, but nothing is raised where no variant could run: ``baseline`` is None then.

    Raises:
        UserError: another process works in the folder of a study.
    """
    for study in studies:
        check_names(study.variants)
    if len({study.folder for study in studies}) < len(studies):
        raise UserError("study: two studies share a folder: name each data set and each number of shots once.")
    with ExitStack() as stack:
        for study in studies:
            stack.enter_context(locked(study.folder))
        return _run_waves(studies, launch, say)


def _run_waves(studies: Sequence[Study], launch: Launcher, say: Say) -> list[Result]:
    cells = {id(variant): _Cell(study, variant) for study in studies for variant in study.variants}
    _launch([(cell, job) for cell in cells.values() for job in cell.choices()], launch, say)
    waiting = list(cells.values())
    while waiting:
        for cell in waiting:
            cell.settle(cells)
        _launch([(cell, job) for cell in waiting for job in cell.trainings()], launch, say)
        lost = {id(cell.variant) for cell in waiting if cell.lose_rate()}
        waiting = [cell for cell in cells.values() if lost & {id(cell.variant), id(cell.variant.follows)}]
    _launch([(cell, job) for cell in cells.values() for job in cell.timings()], launch, say)
    results = []
    for study in studies:
        result = _result(study, [cells[id(variant)] for variant in study.variants])
        if result["baseline"] is not None:
            write_study(study.folder, result)
        results.append(result)
    return results


class _Cell:
    """A variant of a study in the making.

    Attributes:
        rate: its learning rate; None until it is known.
        validation: rate -> validation metric, where there were several.
        lost: rates at which a seed could not be trained.
        left_out: (job, reason) of what could not be done.
        failed: why it has no results; empty where it has.
    """

    def __init__(self, study: Study, variant: Variant) -> None:
        self.study, self.variant = study, variant
        self.rate: float | None = None
        self.validation: dict[float, float] = {}
        self.lost: set[float] = set()
        self.left_out: list[tuple[str, str]] = []
        self.failed = variant.reason

    def training(self, rate: float, seed: int) -> Training:
        """Make the job of one rate and seed."""
        config = at_rate(self._config, rate)
        folder = self.folder / f"lr-{rate:g}" / f"seed-{seed}"
        name = f"{self._name}: learning rate {rate:g}, seed {seed}"
        return Training(name, str(folder), to_tree(config), seed, str(self.study.folder))

    def choices(self) -> list[Training]:
        """Return the jobs that a rate is chosen by."""
        rates = () if self.failed else self._rates
        return [self.training(rate, self._config.seed) for rate in rates if len(rates) > 1]

    def trainings(self) -> list[Training]:
        """Return the jobs of all seeds at the rate."""
        if self.failed or self.rate is None:
            return []
        return [self.training(self.rate, seed) for seed in self._config.seeds]

    def timings(self) -> list[Timing]:
        """Return the job that times a step, where somebody asked for it and it can be done."""
        beside = self.study.reference
        if beside is None or not any(job.result.is_file() for job in self.trainings()) or not self._config.engine.steps:
            return []
        return [Timing(f"{self._name}: time of a step", str(self.folder), to_tree(self._config), to_tree(beside))]

    def settle(self, cells: Mapping[int, _Cell]) -> None:
        """Take the rate that was chosen, or that of the variant which this one follows."""
        if self.failed:
            return
        leader = self.variant.follows
        rates = list(self._rates) or [self._config.engine.lr]
        if leader is not None:
            other = cells[id(leader)]
            other.settle(cells)
            self.rate, self.failed = other.rate, f"{leader.name}: {other.failed}" if other.failed else ""
        elif len(rates) == 1:
            self.rate = rates[0]
        else:
            try:
                self._take_best(rates)
            except UserError as error:  # a result that cannot be read
                self.failed = one_line(error)

    def _take_best(self, rates: Sequence[float]) -> None:
        task = facts_of(self._config.task.type)
        done = {rate: job for rate, job in zip(rates, self.choices(), strict=True) if job.result.is_file()}
        metrics = {rate: read_result(job.result)["metrics"] for rate, job in done.items()}
        found = {rate: each[task.selects_by] for rate, each in metrics.items() if task.selects_by in each}
        self.validation = {rate: value for rate, value in found.items() if math.isfinite(value)}
        if self.validation:
            left = [rate for rate in self.validation if rate not in self.lost]
            self.rate = max(left, key=lambda rate: sign(task.selects_by) * self.validation[rate])
        elif done:
            name = task.selects_by or "validation metric"
            self.failed = (
                f"there is no {name} to choose a learning rate by, for want of validation data: give one --lr."
            )
        else:
            self.failed = self.left_out[0][1]

    def lose_rate(self) -> bool:
        """Give a rate up at which a seed could not be trained, where there is another one: then return True."""
        left = self.validation.keys() - self.lost - {self.rate}
        if self.failed or self.rate is None or not left or all(job.result.is_file() for job in self.trainings()):
            return False
        self.lost.add(self.rate)
        return True

    def leave_out(self, job: Training | Timing, reason: str) -> None:
        """Note a job that could not be done."""
        self.left_out.append((job.name.removeprefix(f"{self._name}: "), reason))

    def row(self) -> Row:
        """Return what the table says of it."""
        name = {"method": self.variant.name}
        if self.failed:
            return {**name, "failed": self.failed}
        results = {job.seed: read_result(job.result) for job in self.trainings() if job.result.is_file()}
        if not results:
            return {**name, "failed": self.left_out[-1][1]}
        first = next(iter(results.values()))
        costs = {"peak_memory": first["cost"]["peak_memory"]} if "peak_memory" in first["cost"] else {}
        seconds = [each["cost"]["step_seconds"] for each in results.values() if "step_seconds" in each["cost"]]
        costs |= {"step_seconds": median(seconds)} if seconds else {}
        timed = [read_result(job.result) for job in self.timings() if job.result.is_file()]
        return {
            **name,
            **self.variant.facts,
            "lr": self.rate,
            "validation": {f"{rate:g}": value for rate, value in self.validation.items()},
            "baseline": summarise(each["baseline"] for each in results.values()),
            "metrics": summarise(each["metrics"] for each in results.values()),
            "trained_parameters": first["facts"].get("trainable_parameters", 0),
            **costs,
            **(timed[0] if timed else {}),
            "facts": {str(seed): each["facts"] for seed, each in results.items()},
            "seeds": {str(seed): {key: each[key] for key in ("baseline", "metrics")} for seed, each in results.items()},
            **({"left_out": dict(self.left_out)} if self.left_out else {}),
        }

    @property
    def settled(self) -> RunConfig:
        """Its config at the rate that it ended up with."""
        assert self.rate is not None
        return at_rate(self._config, self.rate)

    @property
    def folder(self) -> Path:
        """Where its runs go."""
        return self.study.folder / self.variant.folder

    @property
    def _config(self) -> RunConfig:
        assert self.variant.config is not None
        return self.variant.config

    @property
    def _rates(self) -> Sequence[float]:
        """The rates to choose from: the study's, or its own; one that follows another has none."""
        own = () if self.variant.follows or not self._config.engine.steps else self._config.rates
        return self.variant.rates or own

    @property
    def _name(self) -> str:
        return self.variant.name


def _launch(pairs: Sequence[tuple[_Cell, Training | Timing]], launch: Launcher, say: Say) -> None:
    """Run the jobs that are not done, each in a folder of its own config; what cannot be done is noted."""
    waiting = []
    for cell, job in pairs:
        try:
            config = validate(job.config)
        except UserError as error:  # no rate that this variant can have
            cell.leave_out(job, one_line(error))
            continue
        try:
            if isinstance(job, Training):
                open_run(Path(job.folder).parent, config)
        except UserError as error:
            cell.failed = one_line(error)  # what is there is not this variant's
            continue
        if not job.result.is_file():
            waiting.append((cell, job))
    reasons = launch([job for _, job in waiting], say) if waiting else []
    for (cell, job), reason in zip(waiting, reasons, strict=True):
        if reason is not None or not job.result.is_file():
            cell.leave_out(job, reason or "it left no result")


def _result(study: Study, cells: Sequence[_Cell]) -> Result:
    """Return what ``study.json`` holds."""
    rows = [_row(cell) for cell in cells]
    configs = [cell.variant.config for cell in cells if cell.variant.config is not None]
    settings = {row["method"]: cell.settled for row, cell in zip(rows, cells, strict=True) if "failed" not in row}
    return {
        "title": study.title,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "task": configs[0].task.type if configs else "",
        **study.facts,
        "seeds": list(configs[0].seeds) if configs else [],
        "environment": environment(),
        **({"settings": differing(settings)} if study.settings else {}),
        "baseline": _baseline(study, rows, cells),
        "rows": rows,
    }


def _baseline(study: Study, rows: Sequence[Row], cells: Sequence[_Cell]) -> dict[str, Any] | None:
    """Return the metrics of the model without training, of a variant whose task is set as the reference's if possible.

    A variant with another head begins elsewhere. None where nothing could run.
    """
    done = [(row, cell) for row, cell in zip(rows, cells, strict=True) if "failed" not in row]
    alike = [row for row, cell in done if study.reference and cell.settled.task == study.reference.task]
    return next((row["baseline"] for row in [*alike, *(row for row, _ in done)]), None)


def _row(cell: _Cell) -> Row:
    """Return the row of a variant; results that cannot be read are no results."""
    try:
        return cell.row()
    except UserError as error:
        return {"method": cell.variant.name, "failed": one_line(error)}
