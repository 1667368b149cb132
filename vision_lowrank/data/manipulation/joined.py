"""Several data sets as one, which remembers where every picture came from."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ...errors import DataError
from .base import ManipulationSet, PictureRecord, Records


@dataclass(frozen=True)
class JoinedSet(ManipulationSet):
    """The pictures of several sets, one set after the other.

    Attributes:
        parts: (N,) int16, number of the set that each picture came from.
        draws: pictures drawn from every set per epoch; None = every picture once.
    """

    parts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int16), repr=False)
    draws: int | None = None

    def subset(self, indices: Sequence[int] | np.ndarray, name: str | None = None) -> JoinedSet:
        """Select the pictures at `indices`, in that order; they keep their parts."""
        chosen = super().subset(indices, name)
        assert isinstance(chosen, JoinedSet)
        return replace(chosen, parts=self.parts[np.asarray(indices, dtype=np.int64)])


@dataclass(frozen=True)
class JoinedRecords(Records):
    """Records of several sets; ids, sources and groups begin with the set's name, paths with `root`.

    Attributes:
        sets: the sets.
        root: folder above all of them.
        ends: index after each set's last record.
    """

    sets: tuple[ManipulationSet, ...]
    root: Path
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return self.ends[-1]

    def record(self, index: int) -> PictureRecord:
        """Return the record of the set that `index` falls into, renamed and relocated."""
        number = bisect_right(self.ends, index)
        images = self.sets[number]
        record = relocated(images.records[index - (self.ends[number - 1] if number else 0)], images.root, self.root)
        group = None if record.group is None else f"{images.name}/{record.group}"
        named = {"id": f"{images.name}/{record.id}", "source_id": f"{images.name}/{record.source_id}", "group": group}
        return replace(record, **named)


def join(name: str, sets: Sequence[ManipulationSet], draws: int | None = None) -> JoinedSet:
    """Join `sets` into one.

    Args:
        name: of the joined set.
        sets: with different names and one vocabulary.
        draws: see :class:`JoinedSet`.

    Raises:
        DataError: two sets have one name, or their vocabularies differ.
    """
    names = [images.name for images in sets]
    for each in names:
        if names.count(each) > 1:
            raise DataError(f"two of the sets to join are called '{each}': rename one's folder.")
    for images in sets[1:]:
        if images.vocabulary != sets[0].vocabulary:
            raise DataError(f"'{sets[0].name}' and '{images.name}' have different vocabularies: they cannot be joined.")
    root = Path(os.path.commonpath([os.path.abspath(images.root) for images in sets]))
    ends = tuple(int(end) for end in np.cumsum([len(images) for images in sets]))
    joined = ManipulationSet.of(name, JoinedRecords(tuple(sets), root, ends), root, sets[0].vocabulary)
    parts = np.repeat(np.arange(len(sets), dtype=np.int16), [len(images) for images in sets])
    return JoinedSet(**vars(joined), parts=parts, draws=draws)


def relocated(record: PictureRecord, old: Path, new: Path) -> PictureRecord:
    """Return `record` with its paths, relative to the folder `old`, made relative to `new`."""
    start = os.path.abspath(new)
    if os.path.abspath(old) == start:
        return record

    def moved(path: str | None) -> str | None:
        return path and Path(os.path.relpath(os.path.abspath(old / path), start)).as_posix()

    paths = {key: moved(getattr(record, key)) for key in ("source_image", "mask")}
    return replace(record, image=moved(record.image) or record.image, **paths)
