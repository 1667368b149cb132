"""OTB100 (OTB-2015): 100 targets in 98 folders, ``root/CLIP/{img/0001.jpg, groundtruth_rect.txt}``.

Numbers stand between commas, tabs or blanks; pixels count from 1. Some clips are a range of their folder's frames, with
one row per frame of the range. Tiger1's first 5 frames and rows are left out. Two targets are in Jogging and Skating2
(``groundtruth_rect.1.txt``, ``.2.txt``) and in Human4, whose first file is empty; they are called ``Jogging_1``, as in
most result files (got10k's toolkit: ``Jogging.1``).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from ...config.marks import Folder
from ...config.schema import Section
from ...errors import DataError
from ...registry import register
from ..find_pictures import said
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
    numbered,
)
from .text import read_lines, read_numbers

REMEDY = "get OTB100 from http://cvlab.hanyang.ac.kr/tracker_benchmark/datasets.html"
PUBLISHED = 100

# Clip -> its first and last frame, where they are not 1 and as many as there are rows.
RANGES = {
    "David": (300, 770), "BlurCar1": (247, 988), "BlurCar3": (3, 359), "BlurCar4": (18, 397), "Football1": (1, 74),
    "Freeman3": (1, 460), "Freeman4": (1, 283), "Diving": (1, 215),
}  # fmt: skip
OMITTED = {"Tiger1": 5}  # frames and rows at the start


class Otb100Config(Section):
    """Options of ``data: {type: otb100}``."""

    type: Literal["otb100"] = "otb100"
    root: Folder = Field(description="folder of the clips' folders")


@register(
    "data", "otb100", summary="OTB100 (OTB-2015), 100 targets in short clips", paper="doi 10.1109/TPAMI.2014.2388226",
    config=Otb100Config, gives="clips",
)  # fmt: skip
def otb100(config: Otb100Config) -> ClipSplits:
    """Give the clips that :func:`read_otb100` finds, for testing."""
    return as_splits(read_otb100(config))


def read_otb100(config: Otb100Config) -> FileClips:
    """Find the targets, by name.

    Raises:
        DataError: the folder is missing or holds no clips.
    """
    root = folder_of(config.root, REMEDY)
    folders = folders_in(root)
    truths = {folder.name: _truths(folder) for folder in folders}
    clips = tuple(
        FileClip(name, partial(_load, folder, path, name), origin=1)
        for folder in folders
        for name, path in truths[folder.name].items()
    )
    check_found(len(clips), root, "folders with a groundtruth_rect.txt", REMEDY)
    other = said({"without groundtruth_rect.txt": tuple(name for name, found in truths.items() if not found)})
    return FileClips("otb100", clips, published=PUBLISHED, origin=1, notes=(other,) if other else ())


def _truths(folder: Path) -> dict[str, Path]:
    """Return target -> file of its boxes; empty files are no targets."""
    several = [folder / f"groundtruth_rect.{number}.txt" for number in (1, 2)]
    found = {
        f"{folder.name}_{number}": path for number, path in enumerate(several, 1) if path.is_file() and read_lines(path)
    }
    only = folder / "groundtruth_rect.txt"
    return found or ({folder.name: only} if only.is_file() else {})


def _load(folder: Path, truth: Path, name: str) -> Footage:
    boxes, omitted = read_numbers(truth, 4), OMITTED.get(name, 0)
    first, last = RANGES.get(name, (1, len(boxes)))
    if last - first + 1 != len(boxes):
        raise DataError(f"'{truth}' has {len(boxes):,} rows for frames {first} to {last} of '{name}': {REMEDY}.")
    return footage_of(name, numbered(folder / "img", range(first + omitted, last + 1), name), boxes[omitted:])
