"""``data: {type: edits}``: edited photographs, made in a folder on first use and read from there afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from ...registry import register
from ..manipulation.base import REAL, ManipulationSet, ManipulationSplits
from ..manipulation.schema import read_schema
from ..manipulation.splits import SPLITS
from .base import VOCABULARY
from .generate import make_edits
from .options import EditOptions


class EditsConfig(EditOptions):
    """Options of ``data: {type: edits}``."""

    type: Literal["edits"] = "edits"
    folder: str = Field(description="where the data set is made on first use, such as runs/data/edits")


@register(
    "data",
    "edits",
    summary="edited photographs made by seeded kinds of edit, exact masks",
    config=EditsConfig,
    gives="edits",
)
def edits(config: EditsConfig) -> ManipulationSplits:
    """Make the data set if it is not there yet, and read it: test sets ``seen`` and, if there are unseen kinds,
    ``unseen``, each with all real pictures of the test split.

    Raises:
        DataError: the folder holds a data set made with other options (names them), or something else; photographs
            or objects are missing.
        UserError: a kind needs OpenCV, and it is not installed.
    """
    options = EditOptions(**config.model_dump(exclude={"type", "folder"}))
    make_edits(options, Path(config.folder))
    return read_edits(Path(config.folder), config.unseen_kinds)


def read_edits(folder: Path, unseen: tuple[str, ...] = ()) -> ManipulationSplits:
    """Read the splits of a finished data set.

    Raises:
        DataError: a file is missing or damaged.
    """
    train, val, test = (_read(folder, split) for split in SPLITS)
    held = np.isin(test.editors.codes, [code for code, name in enumerate(test.editors.names) if name in unseen])
    tests = {"seen": _part(test, ~held, "seen")}
    if unseen:
        tests["unseen"] = _part(test, held | (test.labels == REAL), "unseen")
    return ManipulationSplits(train, val, tests)


def _read(folder: Path, split: str) -> ManipulationSet:
    """Read a split; it may be empty, where its share of the photographs is 0."""
    path = folder / f"{split}.jsonl"
    if path.is_file() and not path.stat().st_size:
        return ManipulationSet.of(split, (), folder, VOCABULARY)
    return read_schema(path, split)


def _part(images: ManipulationSet, which: np.ndarray, name: str) -> ManipulationSet:
    return images.subset(np.flatnonzero(which), name)
