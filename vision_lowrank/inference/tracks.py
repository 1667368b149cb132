"""Following targets through the frames of a source, a row per frame, kept in a journal as they come.

The journal, ``track.jsonl``, begins with ``{"header": {…}}``: source, first boxes, and the identity of the model. A row
has the exact boxes, so what a run that stopped would have done next can be done later, to the last digit: the template
comes from the first frame again, and a target is where its last box with an area is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..data.videos import FrameSource
from ..errors import UserError
from ..tasks.tracking.model import TrackingModel
from ..tasks.tracking.online import Tracked, renew_template

JOURNAL = "track.jsonl"


@dataclass(frozen=True)
class TrackRow:
    """Where the targets are in one frame.

    Attributes:
        frame: its number, from 0.
        boxes: (T, 4) float64, left, top, width, height of each target in pixels.
        scores: (T,) float64 in [0, 1]; 1 in the first frame, which was given.
        seconds: the tracker took, reading and drawing left out.
    """

    frame: int
    boxes: np.ndarray
    scores: np.ndarray
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, exact."""
        boxes, scores = self.boxes.tolist(), self.scores.tolist()
        return {"frame": self.frame, "boxes": boxes, "scores": scores, "seconds": round(self.seconds, 6)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrackRow:
        """Return what :meth:`to_dict` was called on."""
        boxes, scores = (np.array(values[name], dtype=np.float64) for name in ("boxes", "scores"))
        return cls(int(values["frame"]), boxes.reshape(-1, 4), scores, float(values["seconds"]))


def follow(
    model: TrackingModel,
    source: FrameSource,
    boxes: Sequence[Sequence[float]],
    fmt: str = "xywh",
    done: Sequence[TrackRow] = (),
) -> Iterator[tuple[np.ndarray, TrackRow]]:
    """Yield every frame (H, W, 3) uint8 with its row; frames that are `done` come with the rows they have.

    Args:
        model: the tracker.
        source: of the frames.
        boxes: of the targets in the first frame, four numbers in pixels each.
        fmt: what the numbers are, see :meth:`TrackingModel.init`.
        done: rows of the first frames, in order, from an earlier run.

    Raises:
        UserError: a box cannot be used.
        DataError: there is no frame.
    """
    targets: list[Any] = []
    for number, frame in enumerate(source):
        start = time.perf_counter()
        if number == 0:
            targets = [model.start(frame, box, fmt) for box in boxes]
            found = np.stack([_xywh(target.box) for target in targets])
            row = TrackRow(0, found, np.ones(len(targets)), time.perf_counter() - start)
        elif number < len(done):
            row = done[number]
            for target, box, score in zip(targets, row.boxes, row.scores, strict=True):
                if (box[2:] > 0).all():
                    target.box = np.concatenate([box[:2], box[:2] + box[2:]])
                renew_template(model, target, frame, Tracked(box, float(score)))
        else:
            tracked = model.track_many(frame, targets)
            scores = np.array([each.score for each in tracked])
            row = TrackRow(number, np.stack([each.box for each in tracked]), scores, time.perf_counter() - start)
        yield frame, row


class TrackJournal:
    """Appends rows to the journal in a folder; nothing is touched there before the first row. Use it as a context."""

    def __init__(self, folder: Path, header: Mapping[str, Any], done: Sequence[TrackRow]) -> None:
        """Begin a journal, or go on with one that holds the rows `done`."""
        self._folder, self._before = folder, [{"header": dict(header)}, *(row.to_dict() for row in done)]
        self._file: TextIO | None = None

    def add(self, row: TrackRow) -> None:
        """Write a row."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / JOURNAL).open("w", encoding="utf-8")
            self._file.writelines(json.dumps(line) + "\n" for line in self._before)
        self._file.write(json.dumps(row.to_dict()) + "\n")
        self._file.flush()

    def __enter__(self) -> TrackJournal:
        return self

    def __exit__(self, *about: object) -> None:
        if self._file is not None:
            self._file.close()


def read_journal(folder: Path, header: Mapping[str, Any]) -> list[TrackRow]:
    """Read the rows of an earlier run; none where there was none. Half a line at the end is left out.

    Raises:
        UserError: it was another run: of another source, model or box.
    """
    path = folder / JOURNAL
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    values = [value for value in map(_parsed, lines) if value is not None]
    earlier = values[0].get("header", {}) if values else {}
    for name, value in header.items():
        if earlier.get(name) != json.loads(json.dumps(value)):
            raise UserError(
                f"{path}: was written with another {name} ({earlier.get(name)}, now {value}): track without --resume, "
                "or into another folder."
            )
    rows = [TrackRow.from_dict(value) for value in values[1:]]
    return [row for number, row in enumerate(rows) if row.frame == number]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _xywh(box: np.ndarray) -> np.ndarray:
    return np.concatenate([box[:2], box[2:] - box[:2]])
