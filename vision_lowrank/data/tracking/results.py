"""Result files of trackers: one text file of boxes per sequence, in the forms that servers and toolkits read.

==================  ============================  =============  ====================================================
form                boxes                         numbers        whose
==================  ============================  =============  ====================================================
``got10k``          SEQ/SEQ_001.txt               comma, %.4f    GOT-10k's server and toolkit; SEQ_time.txt beside
``trackingnet``     SEQ.txt                       comma, %.2f    TrackingNet's server
``pytracking``      SEQ.txt; run r: FOLDER_00r    tab, %.4f      pytracking and what descends from it
``lasot``           SEQ.txt                       comma, %.4f    LaSOT's and OTB's MATLAB toolkits; counts from 1
``got10k-toolkit``  SEQ.txt                       comma, %.3f    got10k's toolkit on OTB, LaSOT, UAV123, NFS
==================  ============================  =============  ====================================================

Boxes are left, top, width, height in pixels, one row per frame from the first on; times are seconds, one row per frame.
Reading takes tabs, commas and blanks in any form. Files are replaced as a whole, so what is there is complete.

LaSOT, OTB and UAV123 count pixels from 1. What is initialised with a box of theirs answers in their numbers, and so it
is kept and compared. Only the form ``lasot`` promises a first pixel: boxes are moved there from `origin`, the number of
the first pixel in what is written or asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ...errors import DataError, UserError, near_miss
from ...files import write_text
from ...metrics.tracking.base import Prediction
from ...metrics.tracking.sanitise import check_boxes
from .text import parse_numbers, read_lines, read_numbers

RUN_AGAIN = "run the tracker again on this sequence"


@dataclass(frozen=True)
class ResultForm:
    """How results of one sequence are named and written; ``{seq}``, ``{run}`` from 1, ``{index}`` from 0, ``{folder}``.

    Attributes:
        name: as people choose it.
        delimiter: between the numbers of a box.
        number: format of one.
        single: path of the boxes where there is one run.
        repeated: path of the boxes of one of several runs; empty where the form knows only one.
        times: path of the seconds.
        origin: number of the first pixel; None = whatever the benchmark counts from.
    """

    name: str
    delimiter: str
    number: str
    single: str
    repeated: str = ""
    times: str = "times/{seq}_time.txt"
    origin: int | None = None


FORMS = {
    form.name: form
    for form in (
        ResultForm("got10k", ",", "%.4f", "{seq}/{seq}_001.txt", "{seq}/{seq}_{run:03d}.txt", "{seq}/{seq}_time.txt"),
        ResultForm("trackingnet", ",", "%.2f", "{seq}.txt"),
        ResultForm("pytracking", "\t", "%.4f", "{seq}.txt", "../{folder}_{index:03d}/{seq}.txt", "{seq}_time.txt"),
        ResultForm("lasot", ",", "%.4f", "{seq}.txt", origin=1),
        ResultForm("got10k-toolkit", ",", "%.3f", "{seq}.txt"),
    )
}


def form_of(name: str) -> ResultForm:
    """Return a form by its name.

    Raises:
        UserError: there is none; the message lists the names.
    """
    if name not in FORMS:
        raise UserError(f"unknown form of results '{name}'.{near_miss(name, FORMS)} Known: {', '.join(FORMS)}.")
    return FORMS[name]


@dataclass(frozen=True)
class ResultFolder:
    """The results of one tracker on one benchmark.

    Attributes:
        root: the folder; made when something is written.
        form: how files are named and written.
        origin: number of the first pixel in boxes that are given and returned.
    """

    root: Path
    form: ResultForm
    origin: int = 0

    def path(self, sequence: str, run: int | None = None) -> Path:
        """Return where the boxes of a sequence are.

        Args:
            sequence: its name.
            run: from 1, where there are several; None = the only one.

        Raises:
            UserError: the form knows one run only.
        """
        if run is not None and not self.form.repeated:
            raise UserError(f"results in the form '{self.form.name}' have one run: repeat in folders of their own.")
        template = self.form.single if run is None else self.form.repeated
        return _resolved(self.root, template, sequence, run or 1)

    def times_path(self, sequence: str, run: int | None = None) -> Path:
        """Return where the seconds of a sequence are."""
        home = self.path(sequence, run).parent if self.form.times == "{seq}_time.txt" else self.root
        return _resolved(home, self.form.times, sequence, run or 1)

    def write(self, sequence: str, boxes: ArrayLike, seconds: ArrayLike | None = None, run: int | None = None) -> Path:
        """Write one run on one sequence, the times first, so that whoever finds boxes finds all; return their path.

        Args:
            sequence: its name.
            boxes: (L, 4) left, top, width, height in pixels.
            seconds: (L,) of each frame, the first that of the initialisation; None = not measured.
            run: as :meth:`path`. The form ``got10k`` keeps one column of times per run.

        Raises:
            DataError: a number is not finite, or there is not one time per box.
        """
        path = self.path(sequence, run)
        rows = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        check_boxes(rows, f"result of '{sequence}'")
        if seconds is not None:
            column = np.asarray(seconds, dtype=np.float64).reshape(-1, 1)
            if len(column) != len(rows):
                raise DataError(
                    f"result of '{sequence}': {len(column):,} times for {len(rows):,} boxes: give one each."
                )
            write_text(self.times_path(sequence, run), _text(self._columns(sequence, run, column), "%.8f", ","))
        rows[:, :2] += self._shift
        write_text(path, _text(rows, self.form.number, self.form.delimiter))
        return path

    def read(self, sequence: str, frames: int | None = None, run: int | None = None) -> Prediction:
        """Read one run on one sequence.

        Args:
            sequence: its name.
            frames: how many rows there must be at least; None = any number.
            run: as :meth:`path`.

        Raises:
            DataError: the file is missing, has no rows, too few, or a row that is not four numbers (names the row).
        """
        path = self.path(sequence, run)
        boxes = read_result(path, frames)
        boxes[:, :2] -= self._shift
        return Prediction(boxes, f"'{path}'")

    def read_all(self, sequence: str, frames: int | None = None) -> list[Prediction]:
        """Read all runs on a sequence, the numbered ones where there are some; as :meth:`read`."""
        runs = self.runs(sequence)
        return [self.read(sequence, frames, run) for run in runs] or [self.read(sequence, frames)]

    def runs(self, sequence: str) -> list[int]:
        """List the numbered runs that are there, 1, 2, … without a gap; empty where there is none, or only one file."""
        found: list[int] = []
        while self.form.repeated and self.path(sequence, len(found) + 1).is_file():
            found.append(len(found) + 1)
        return found

    def read_times(self, sequence: str, run: int | None = None) -> np.ndarray | None:
        """Read the seconds of a sequence, (L, runs) float64; None where they were not written."""
        path = self.times_path(sequence, run)
        if not path.is_file():
            return None
        lines = read_lines(path)
        return parse_numbers(lines, len(lines[0].split(",")) if lines else 1, f"'{path}'")

    def is_complete(self, sequence: str, frames: int, run: int | None = None) -> bool:
        """Tell whether a run's boxes are there, with as many rows as frames: what a resumed evaluation leaves out."""
        path = self.path(sequence, run)
        return path.is_file() and len(read_lines(path)) == frames

    @property
    def _shift(self) -> int:
        return 0 if self.form.origin is None else self.form.origin - self.origin

    def _columns(self, sequence: str, run: int | None, column: np.ndarray) -> np.ndarray:
        """Put the times of a run beside those of the runs before it, where one file holds all."""
        if "{index" in self.form.repeated or not self.form.repeated:
            return column
        before = self.read_times(sequence) if run and run > 1 else None
        if before is None or len(before) != len(column):
            return column
        return np.concatenate([before[:, : (run or 1) - 1], column], axis=1)


def read_result(path: Path, frames: int | None = None) -> np.ndarray:
    """Read a file of boxes in any form, (N, 4) float64, as the numbers stand there.

    Args:
        path: the file.
        frames: how many rows there must be at least; None = any number.

    Raises:
        DataError: as :meth:`ResultFolder.read`.
    """
    boxes = read_numbers(path, 4, RUN_AGAIN)
    if not len(boxes) or (frames is not None and len(boxes) < frames):
        wanted = f" for {frames:,} frames" if frames is not None else ""
        raise DataError(f"'{path}' has {len(boxes):,} rows{wanted}: {RUN_AGAIN}.")
    return boxes


def rasterize(boxes: ArrayLike) -> np.ndarray:
    """Grow boxes to whole pixels: left and top down, right and bottom up; (L, 4) -> (L, 4).

    LoRAT does so before it writes for the servers of GOT-10k and TrackingNet.
    """
    array = np.asarray(boxes, dtype=np.float64)
    low, high = np.floor(array[:, :2]), np.ceil(array[:, :2] + array[:, 2:])
    return np.concatenate([low, high - low], axis=1)


def _resolved(root: Path, template: str, sequence: str, run: int) -> Path:
    name = template.format(seq=sequence, run=run, index=run - 1, folder=root.name)
    return root.parent / name[3:] if name.startswith("../") else root / name


def _text(rows: np.ndarray, number: str, delimiter: str) -> str:
    return "".join(delimiter.join(number % value for value in row) + "\n" for row in rows)
