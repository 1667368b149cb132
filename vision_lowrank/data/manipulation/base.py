"""What every manipulation data set is: photographs, real or edited, with what is known of their edits.

A :class:`PictureRecord` says what is known of one picture. A key that is None was NOT ANNOTATED; an empty tuple was
annotated and there is none: losses and metrics skip the first and use the second. A :class:`ManipulationSet` holds
records, as a sequence that may parse them one by one, beside arrays of what splits, samplers and slices ask of all of
them; pictures and masks are read when asked for.

Schema and vocabularies follow ManipBench (arXiv 2511.14259); keys and file layout are this project's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias, overload

import numpy as np
from PIL import Image

from ...errors import DataError
from ..images import image_size, read_image
from ..pictures import PictureSet
from .masks import read_mask

Scope: TypeAlias = Literal["local", "global", "unknown"]
Box: TypeAlias = tuple[float, float, float, float]

REAL, EDITED, SYNTHETIC = 0, 1, 2

HIGH_LEVEL_CUES = ("shape", "structure", "relation", "text", "pose", "expression")
LOW_LEVEL_CUES = ("texture", "blur", "noise", "light", "detail", "color")


@dataclass(frozen=True)
class Vocabulary:
    """Names whose order fixes the order of a head's outputs.

    Attributes:
        cues: visible signs of an edit.
        categories: what kinds of edit there are, by group.
    """

    cues: tuple[str, ...] = (*HIGH_LEVEL_CUES, *LOW_LEVEL_CUES)
    categories: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "semantic": ("addition", "removal", "replacement", "action_change"),
            "visual": ("background", "color", "material", "expression", "resizing"),
            "textual": ("scene_text", "handwritten_text", "scanning_text"),
        }
    )


@dataclass(frozen=True)
class Region:
    """An edited region.

    Attributes:
        xyxy: left, top, right, bottom in pixels of the stored picture (after its EXIF orientation).
        cues: cues of this region; None = not annotated.
    """

    xyxy: Box
    cues: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PictureRecord:
    """One picture. None everywhere means not annotated.

    Attributes:
        id: unique in its data set.
        image: path relative to the set's root, POSIX.
        label: 0 real, 1 edited, 2 fully synthetic.
        source_id: what a real picture and its edits ("twins") share; a real picture's is its own id.
        group: what is never divided among splits, where that is more than a source, such as crops of one photograph.
        source_image: path of the real picture that this one was made of.
        editor: what made the edit, such as ``qwen-image-edit``.
        editor_access: ``open`` or ``closed``.
        category: kind of edit, from the vocabulary.
        prompt: instruction that the editor was given.
        scope: ``local``, ``global`` (all of it was regenerated: no part in localisation metrics) or ``unknown``.
        width: of the stored picture in pixels.
        height: likewise.
        boxes: edited regions.
        mask: path of the mask, white where edited.
        cues: visible signs of the edit.
        explanation: text for people.
        annotator: who annotated: ``human``, ``auto`` or ``generator``.
        derived: boxes were computed from the mask, or the mask from boxes.
        split: ``train``, ``val`` or ``test``.
    """

    id: str
    image: str
    label: int
    source_id: str
    group: str | None = None
    source_image: str | None = None
    editor: str | None = None
    editor_access: str | None = None
    category: str | None = None
    prompt: str | None = None
    scope: Scope = "unknown"
    width: int | None = None
    height: int | None = None
    boxes: tuple[Region, ...] | None = None
    mask: str | None = None
    cues: tuple[str, ...] | None = None
    explanation: str | None = None
    annotator: str | None = None
    derived: bool = False
    split: str | None = None


@dataclass(frozen=True)
class Column:
    """One name per picture, as numbers.

    Attributes:
        codes: (N,) int32, index into `names`; -1 = not annotated.
        names: every name that occurs, in order of appearance.
    """

    codes: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Iterable[str | None]) -> Column:
        """Make the column of `values`."""
        numbers: dict[str, int] = {}
        codes = [-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values]
        return cls(np.asarray(codes, dtype=np.int32), tuple(numbers))

    def __getitem__(self, index: int) -> str | None:
        code = int(self.codes[index])
        return None if code < 0 else self.names[code]

    def at(self, indices: np.ndarray) -> Column:
        """Return the column of some pictures; names stay as they are."""
        return Column(self.codes[indices], self.names)


@dataclass(frozen=True)
class ManipulationSet(PictureSet):
    """Real and edited pictures.

    Attributes:
        name: a short name used in tables.
        records: one per picture.
        root: folder that the records' paths are relative to.
        vocabulary: order of cues and categories.
        labels: (N,) int8.
        sources: ``source_id`` of every picture.
        editors: ``editor`` of every picture.
        categories: ``category`` of every picture.
        notes: what people should know of how the set was read, such as files left out.
    """

    name: str
    records: Sequence[PictureRecord] = field(repr=False)
    root: Path
    vocabulary: Vocabulary
    labels: np.ndarray = field(repr=False)
    sources: Column = field(repr=False)
    editors: Column = field(repr=False)
    categories: Column = field(repr=False)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, name: str, records: Sequence[PictureRecord], root: Path, vocabulary: Vocabulary | None = None
    ) -> ManipulationSet:
        """Make a set of `records`, which are gone through once."""
        rows = [(r.label, r.source_id, r.editor, r.category) for r in records]
        return cls(
            name,
            records,
            root,
            vocabulary or Vocabulary(),
            np.asarray([row[0] for row in rows], dtype=np.int8),
            Column.of(row[1] for row in rows),
            Column.of(row[2] for row in rows),
            Column.of(row[3] for row in rows),
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def keys(self) -> Sequence[str]:
        """The id of every record."""
        return [record.id for record in self.records]

    def image(self, index: int) -> Image.Image:
        """Load a picture, see :meth:`PictureSet.image`."""
        name = self.records[index].image
        return read_image(self.root / name, name)

    def mask(self, index: int) -> np.ndarray | None:
        """Return where picture `index` was edited, (H, W) bool; all False for a real one, None where not annotated.

        Raises:
            AmbiguousMask: the file can be read in several ways, see :mod:`.masks`.
            DataError: the file is missing or damaged, or its size is not the picture's.
        """
        record = self.records[index]
        if record.mask is not None:
            mask = read_mask(self.root / record.mask, record.mask)
            check_mask_size(record, mask, self.size(index))
            return mask
        if record.label == REAL:
            width, height = self.size(index)
            return np.zeros((height, width), dtype=bool)
        return None

    def size(self, index: int) -> tuple[int, int]:
        """Return (width, height) of picture `index` in pixels, upright.

        Raises:
            DataError: it is missing or no picture.
        """
        record = self.records[index]
        if record.width is not None and record.height is not None:
            return record.width, record.height
        return image_size(self.root / record.image, record.image)

    def subset(self, indices: Sequence[int] | np.ndarray, name: str | None = None) -> ManipulationSet:
        """Return the pictures at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            name=name or self.name,
            records=Chosen(self.records, chosen),
            labels=self.labels[chosen],
            sources=self.sources.at(chosen),
            editors=self.editors.at(chosen),
            categories=self.categories.at(chosen),
        )

    def facts(self) -> Iterable[int]:
        """Return the label of each picture."""
        return self.labels.tolist()


class Records(Sequence[PictureRecord]):
    """Records that are made when asked for, by :meth:`record`; a slice is :class:`Chosen` ones of them."""

    def record(self, index: int) -> PictureRecord:
        """Return record `index`, 0 <= index < len."""
        raise NotImplementedError

    @overload
    def __getitem__(self, item: int) -> PictureRecord: ...
    @overload
    def __getitem__(self, item: slice) -> Chosen: ...
    def __getitem__(self, item: int | slice) -> PictureRecord | Chosen:
        if isinstance(item, slice):
            return Chosen(self, np.arange(len(self))[item])
        if not -len(self) <= item < len(self):
            raise IndexError(item)
        return self.record(item % len(self))


@dataclass(frozen=True)
class Chosen(Records):
    """Some of the records of a longer sequence."""

    records: Sequence[PictureRecord]
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def record(self, index: int) -> PictureRecord:
        """Return the record that ``indices[index]`` names."""
        return self.records[int(self.indices[index])]


@dataclass(frozen=True)
class ManipulationSplits:
    """What a manipulation data set gives to a task.

    Attributes:
        train: pictures to learn from.
        val: pictures for selection and calibration; no source of theirs is in `train` or a test set.
        tests: named test sets, never used for selection.
    """

    train: ManipulationSet
    val: ManipulationSet
    tests: dict[str, ManipulationSet]


def check_mask_size(record: PictureRecord, mask: np.ndarray, size: tuple[int, int]) -> None:
    """Check that a mask, (H, W), is as large as its picture.

    Args:
        record: of the picture.
        mask: of the picture.
        size: (width, height) of the picture in pixels, upright.

    Raises:
        DataError: it is not.
    """
    if mask.shape != size[::-1]:
        raise DataError(
            f"mask '{record.mask}' is {mask.shape[1]} x {mask.shape[0]} pixels, its picture '{record.image}' "
            f"{size[0]} x {size[1]}: mend one of them; `vision-lowrank data validate` finds all such pairs."
        )
