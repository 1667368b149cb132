"""GOT-10k: 9,335 training, 180 validation and 180 test clips.

``root/{train, val, test}/{list.txt, GOT-10k_Train_000001/…}``; a clip holds ``00000001.jpg``, ``groundtruth.txt``, one
label per frame in ``absence.label`` and ``cover.label`` (0 to 8 eighths that can be seen), and ``meta_info.ini``. The
order is that of ``list.txt``, which files of indices count in (such as "vot_train", 7,086 clips that VOT's test clips
do not overlap). A target is visible where it is not absent and its cover is more than 0. Of a test clip only the first
box is known, the others are the server's.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from ...config.marks import File, Folder
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
    check_there,
    folder_of,
    footage_of,
    pictures_in,
    with_first_box,
)
from .text import read_flags, read_lines, read_numbers

REMEDY = "get GOT-10k from http://got-10k.aitestunion.com/downloads"
PUBLISHED = {"train": 9335, "val": 180, "test": 180}
TOLD = ("object_class", "motion_class")  # of meta_info.ini, in attributes


class Got10kConfig(Section):
    """Options of ``data: {type: got10k}``."""

    type: Literal["got10k"] = "got10k"
    root: Folder = Field(description="folder of `train`, `val` and `test`")
    split: Literal["train", "val", "test"] = Field("val", description="which clips")
    indices: File | None = Field(None, description="text file of lines of list.txt to take, counted from 0; null = all")


@register(
    "data", "got10k", summary="GOT-10k, 10,000 clips of 563 classes", paper="arXiv 1810.11981", config=Got10kConfig,
    gives="clips",
)  # fmt: skip
def got10k(config: Got10kConfig) -> ClipSplits:
    """Give the clips that :func:`read_got10k` finds, for training or as a test set."""
    return as_splits(read_got10k(config), train=config.split == "train")


def read_got10k(config: Got10kConfig) -> FileClips:
    """Find the clips of a split, in the order of its ``list.txt``.

    Raises:
        DataError: the folder, its list, or a clip of the list is missing; an index is no line of the list.
    """
    root = folder_of(config.root, REMEDY) / config.split
    names = [line.strip() for line in read_lines(root / "list.txt") if line.strip()]
    check_found(len(names), root / "list.txt", "names", REMEDY)
    published = PUBLISHED[config.split]
    if config.indices is not None:
        chosen = _indices(Path(config.indices).expanduser(), len(names))
        names, published = [names[index] for index in chosen], len(chosen)
    check_there([name for name in names if not (root / name).is_dir()], len(names), root, REMEDY)
    clips = tuple(FileClip(name, partial(_load, root / name, config.split == "test")) for name in names)
    return FileClips("got10k", clips, published=published)


def _indices(path: Path, lines: int) -> list[int]:
    numbers = read_numbers(path, 1)[:, 0]
    bad = np.flatnonzero((numbers % 1 != 0) | (numbers < 0) | (numbers >= lines))
    if len(bad):
        raise DataError(
            f"'{path}', row {bad[0] + 1}: {numbers[bad[0]]:g} is no line of list.txt, which are 0 to {lines - 1}: give "
            "indices for this split."
        )
    return [int(number) for number in numbers]


def _load(folder: Path, test: bool) -> Footage:
    frames, boxes = pictures_in(folder), read_numbers(folder / "groundtruth.txt", 4)
    meta = _meta(folder / "meta_info.ini")
    size = re.fullmatch(r"\((\d+), *(\d+)\)", meta.get("resolution", ""))
    sides = (int(size[1]), int(size[2])) if size else None
    if test and len(boxes) == 1:
        return with_first_box(folder.name, frames, boxes, sides)
    absent, cover = (read_flags(folder / f"{label}.label", len(boxes)) for label in ("absence", "cover"))
    told = tuple(meta[key] for key in TOLD if key in meta)
    return footage_of(folder.name, frames, boxes, (absent == 0) & (cover > 0), told, sides)


def _meta(path: Path) -> dict[str, str]:
    """Read the ``key: value`` lines of a clip's facts; nothing where there is no such file (the test set)."""
    if not path.is_file():
        return {}
    pairs = [line.partition(":") for line in read_lines(path)]
    return {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
