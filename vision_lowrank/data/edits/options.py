"""``data: {type: edits}``: edited photographs, made in a folder on first use and read from there afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from ...config.schema import Section
from ...errors import DataError
from ...registry import register
from ..manipulation.base import REAL, ManipulationSet, ManipulationSplits
from ..manipulation.schema import read_schema
from ..manipulation.splits import SPLITS
from ..options import Fractions
from .base import VOCABULARY
from .kinds import KINDS, check_kinds

Kinds = Annotated[tuple[str, ...], AfterValidator(check_kinds)]

BUILTIN = "builtin"
CROPS, CROP_SIZE, WHOLE_SIZE = 16, 192, 512


class EditOptions(Section):
    """What a data set of edits is made of, and how."""

    photos: str = Field(BUILTIN, description="folder of photographs, or builtin: scikit-image's")
    per_photo: int = Field(4, ge=1, description="edits per real picture; as many again of unseen kinds in the test set")
    kinds: Kinds = Field(tuple(KINDS), description="kinds of edit, including the unseen ones")
    unseen_kinds: Kinds = Field((), description="kinds that are in no picture of train and val, only in the test set")
    seed: int = Field(1, ge=0, description="of everything drawn")
    size: int | None = Field(
        None, ge=64, description="side of the squares (null = 192), or longest side of whole photographs (512)"
    )
    crops: int | None = Field(
        None, ge=0, description="squares per photograph at most, 0 = whole ones; null = 16 if builtin, else 0"
    )
    objects: str | None = Field(None, description="folder of pictures with transparency to paste; null = emoji")
    fractions: Fractions = Field((0.7, 0.1, 0.2), description="shares of the photographs in train, val and test")
    quality: tuple[int, int] = Field((75, 95), description="range of the JPEG quality, one per real picture")

    @model_validator(mode="after")
    def _consistent(self) -> EditOptions:
        low, high = self.quality
        if not 1 <= low <= high <= 100:
            raise DataError(f"quality {low}, {high} is no range between 1 and 100: such as 75, 95.")
        foreign = [kind for kind in self.unseen_kinds if kind not in self.kinds]
        if foreign:
            raise DataError(f"unseen kind '{foreign[0]}' is not among the kinds to make: add it to `kinds`.")
        if not self.seen:
            raise DataError("no kind of edit is left to train on: name more `kinds` or fewer `unseen_kinds`.")
        return self

    @property
    def seen(self) -> tuple[str, ...]:
        """Kinds that train and val may have."""
        return tuple(kind for kind in self.kinds if kind not in self.unseen_kinds)

    @property
    def squares(self) -> int:
        """Squares per photograph at most; 0 = whole photographs."""
        return self.crops if self.crops is not None else CROPS if self.photos == BUILTIN else 0

    @property
    def pixels(self) -> int:
        """Side of the squares, or longest side of whole photographs."""
        return self.size if self.size is not None else CROP_SIZE if self.squares else WHOLE_SIZE


class EditsConfig(EditOptions):
    """Options of ``data: {type: edits}``."""

    type: Literal["edits"] = "edits"
    folder: str = Field(description="where the data set is made on first use, such as runs/data/edits")


@register("data", "edits", summary="edited photographs made by seeded kinds of edit, exact masks", config=EditsConfig)
def edits(config: EditsConfig) -> ManipulationSplits:
    """Make the data set if it is not there yet, and read it: test sets ``seen`` and, if there are unseen kinds,
    ``unseen``, each with all real pictures of the test split.

    Raises:
        DataError: the folder holds a data set made with other options (names them), or something else; photographs
            or objects are missing.
        UserError: a kind needs OpenCV, and it is not installed.
    """
    from .generate import make_edits

    options = EditOptions(**config.model_dump(exclude={"type", "folder"}))
    make_edits(options, Path(config.folder))
    return read_edits(Path(config.folder), config.unseen_kinds)


def read_edits(folder: Path, unseen: tuple[str, ...] = ()) -> ManipulationSplits:
    """The splits of a finished data set.

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
    """A split; it may be empty, where its share of the photographs is 0."""
    path = folder / f"{split}.jsonl"
    if path.is_file() and not path.stat().st_size:
        return ManipulationSet.of(split, (), folder, VOCABULARY)
    return read_schema(path, split)


def _part(images: ManipulationSet, which: np.ndarray, name: str) -> ManipulationSet:
    return images.subset(np.flatnonzero(which), name)
