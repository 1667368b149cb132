"""Clips from multi-object annotations in MOTChallenge's form: every identity is a target of its own.

``root/SEQUENCE/{img1/000001.jpg, gt/gt.txt, seqinfo.ini}``, or one such folder as the root. A row of ``gt.txt`` is
frame, identity, left, top, width, height, and may go on with a flag (0 = not to be considered), a class and the share
that is visible. A clip goes from the first to the last frame where the identity is visible; between them, frames
without a row have no known box. It is called ``SEQUENCE-IDENTITY``. Pixels count from 1.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from ...config.marks import Folder
from ...config.schema import Section
from ...errors import DataError
from ...registry import register
from .base import ClipSplits
from .reading import (
    FileClip,
    FileClips,
    Footage,
    as_splits,
    check_found,
    folder_of,
    folders_in,
    footage_of,
    has_area,
    numbered,
)
from .text import parse_numbers, read_lines

REMEDY = "give a folder in MOTChallenge's layout"
TRUTH = Path("gt", "gt.txt")


class MotConfig(Section):
    """Options of ``data: {type: mot}``."""

    type: Literal["mot"] = "mot"
    root: Folder = Field(description="folder of the sequences' folders, or one of them")
    split: Literal["train", "test"] = Field("test", description="what the clips are for")
    classes: tuple[int, ...] | None = Field(None, description="numbers of the classes to take; null = all")
    min_frames: int = Field(2, ge=1, description="leave out identities that are visible in fewer frames")


@register(
    "data", "mot", summary="MOTChallenge's layout, one clip per identity", paper="arXiv 1603.00831", config=MotConfig,
    gives="clips",
)  # fmt: skip
def mot(config: MotConfig) -> ClipSplits:
    """Give the clips that :func:`read_mot` finds, for training or as a test set."""
    return as_splits(read_mot(config), train=config.split == "train")


def read_mot(config: MotConfig) -> FileClips:
    """Find the identities, sequence by sequence; their rows are read now, their frames later.

    Raises:
        DataError: the folder is missing, holds no sequences or no identities, or a row is not as it must be.
    """
    root = folder_of(config.root, REMEDY)
    folders = [root] if (root / TRUTH).is_file() else [each for each in folders_in(root) if (each / TRUTH).is_file()]
    check_found(len(folders), root, f"folders with {TRUTH.as_posix()}", REMEDY)
    clips, short = [], 0
    for folder in folders:
        rows = _rows(folder / TRUTH, config.classes)
        for identity in np.unique(rows[:, 1]).astype(int):
            own = rows[rows[:, 1] == identity]
            if int(own[:, 6].sum()) < config.min_frames:
                short += 1
            else:
                name = f"{folder.name}-{identity}"
                clips.append(FileClip(name, partial(_load, name, folder / "img1", own), origin=1))
    check_found(len(clips), root, "identities to follow", "mend `data.classes` or `data.min_frames`")
    notes = (f"left out: {short:,} identities visible in fewer than {config.min_frames} frames",) if short else ()
    return FileClips("mot", tuple(clips), origin=1, notes=notes)


def _rows(path: Path, classes: tuple[int, ...] | None) -> np.ndarray:
    """Read the rows that count, (N, 7): frame, identity, left, top, width, height, whether it is visible.

    Raises:
        DataError: a row is short or has a word, or an identity has two rows in a frame.
    """
    lines = read_lines(path)
    columns = min((len(line.replace(",", " ").split()) for line in lines), default=6)
    rows = parse_numbers(lines, max(6, min(columns, 9)), f"'{path}'")
    if rows.shape[1] > 6:
        rows = rows[rows[:, 6] != 0]
    if classes is not None and rows.shape[1] > 7:
        rows = rows[np.isin(rows[:, 7], classes)]
    keys, counts = np.unique(rows[:, :2], axis=0, return_counts=True)
    if (counts > 1).any():
        frame, identity = keys[np.argmax(counts > 1)].astype(int)
        raise DataError(f"'{path}': identity {identity} has two rows in frame {frame}: keep one.")
    seen = has_area(rows[:, 2:6]) & (rows[:, 8] > 0 if rows.shape[1] > 8 else True)
    return np.column_stack([rows[:, :6], seen])


def _load(name: str, folder: Path, rows: np.ndarray) -> Footage:
    frames, seen = rows[:, 0].astype(int), rows[:, 6] > 0
    first, last = int(frames[seen].min()), int(frames[seen].max())
    inside = (frames >= first) & (frames <= last)
    boxes, visible = np.full((last - first + 1, 4), np.nan), np.zeros(last - first + 1, dtype=bool)
    boxes[frames[inside] - first], visible[frames[inside] - first] = rows[inside, 2:6], seen[inside]
    return footage_of(name, numbered(folder, range(first, last + 1), name), boxes, visible)
