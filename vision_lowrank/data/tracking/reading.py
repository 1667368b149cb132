"""Clips in picture files, read when asked for, and what the readers of the field's data sets share.

The numbers of a box are those in the data set's files. LaSOT, OTB and UAV123 count pixels from 1 and so do their boxes
here (``origin``), as in every toolkit; what starts from such a box answers in its numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np

from ...errors import DataError, near_miss
from ...metrics.tracking.base import Truth
from ..boxes import Size
from ..find_pictures import natural_order
from ..images import image_size, listed, named_as_picture, read_image
from .base import Clip, ClipSet, ClipSplits


class FrameFiles(Sequence[Path]):
    """The paths of a clip's pictures in the memory of their names alone: LaSOT and TrackingNet have 17 million."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Remember the paths; all in one folder, as a clip's pictures are."""
        self._folder = paths[0].parent if len(paths) else Path()
        self._names = np.array([os.fsencode(path.name) for path in paths], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | Sequence[Path]:
        """Return path `index`, or those of a slice."""
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return self._folder / os.fsdecode(bytes(self._names[index]))


@dataclass(frozen=True)
class Footage:
    """What is known of a clip before a picture is read.

    Attributes:
        frames: the pictures, in order.
        boxes: (L, 4) float64 left, top, width, height in pixels, as in the data set's file; NaN where none is known.
        visible: (L,) bool.
        attributes: what makes it hard, or what it shows.
        size: (width, height); None = as the first picture's header says.
        notes: what was left out.
    """

    frames: Sequence[Path]
    boxes: np.ndarray
    visible: np.ndarray
    attributes: tuple[str, ...] = ()
    size: Size | None = None
    notes: tuple[str, ...] = ()


class FileClip(Clip):
    """A clip in picture files; its annotations are read when one of them is asked for, a frame when it is.

    Attributes:
        origin: number of the first pixel, 0 or 1.
    """

    def __init__(self, name: str, load: Callable[[], Footage], origin: int = 0) -> None:
        """Remember where it is.

        Args:
            name: see :class:`Clip`.
            load: gives its :class:`Footage`; raises DataError where it is damaged.
            origin: see above.
        """
        self.name, self.origin, self._load = name, origin, load

    @cached_property
    def footage(self) -> Footage:
        """What was read of the clip's annotations.

        Raises:
            DataError: a file is missing or damaged, or there are fewer frames than boxes.
        """
        return self._load()

    @property
    def boxes(self) -> np.ndarray:  # pyrefly: ignore[bad-override]
        """(L, 4) float64, see :class:`Clip`; rows of zeros stay as they are in the file."""
        return self.footage.boxes

    @property
    def visible(self) -> np.ndarray:  # pyrefly: ignore[bad-override]
        """(L,) bool, see :class:`Clip`."""
        return self.footage.visible

    @property
    def attributes(self) -> tuple[str, ...]:  # pyrefly: ignore[bad-override]
        """See :class:`Clip`."""
        return self.footage.attributes

    @cached_property
    def size(self) -> Size:  # pyrefly: ignore[bad-override]
        """(width, height) of the frames, from the first one's header where the annotations do not say."""
        return self.footage.size or image_size(self.footage.frames[0])

    def __len__(self) -> int:
        return len(self.footage.frames)

    def frame(self, index: int) -> np.ndarray:
        """Read frame `index`; see :class:`Clip`."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip '{self.name}' has frames 0 to {len(self) - 1}, not {index}")
        path = self.footage.frames[index]
        picture = read_image(path)
        if picture.size != tuple(self.size):
            has, wanted = (f"{width} x {height}" for width, height in (picture.size, self.size))
            raise DataError(f"frame '{path}' has {has} pixels, but '{self.name}' has {wanted}: get it again.")
        return np.asarray(picture)

    def __repr__(self) -> str:
        return f"FileClip('{self.name}')"


@dataclass(frozen=True)
class FileClips(ClipSet):
    """Clips of a data set on the disk.

    Attributes:
        published: how many clips the data set has; None where that is not known.
        origin: number of the first pixel in its boxes.
        notes: what people should know of how it was read, such as folders that were left out.
        groups: indices of clips that are drawn as one sequence, such as the objects of one picture; empty = each alone.
    """

    published: int | None = None
    origin: int = 0
    notes: tuple[str, ...] = ()
    groups: Sequence[Sequence[int]] = field(default=(), repr=False)

    def subset(self, indices: Sequence[int]) -> FileClips:
        """Return the clips at `indices`, in that order, still grouped."""
        place = {old: new for new, old in enumerate(indices)}
        kept = ([place[old] for old in group if old in place] for group in self.groups)
        chosen = tuple(self.clips[index] for index in indices)
        return replace(self, clips=chosen, published=None, groups=tuple(group for group in kept if group))


def as_splits(clips: FileClips, train: bool = False) -> ClipSplits:
    """Give clips to tasks: as training clips, or as a test set of their set's name; the others are empty."""
    empty = ClipSet(clips.name, ())
    return ClipSplits(clips, empty, {}) if train else ClipSplits(empty, empty, {clips.name: clips})


def truth_of(clip: Clip) -> Truth:
    """Return what a clip is scored against.

    Raises:
        DataError: boxes after the first frame are withheld.
    """
    boxes = np.asarray(clip.boxes, dtype=np.float64)
    if len(boxes) > 1 and np.isnan(boxes[1:]).all() and clip.visible[1:].all():
        raise DataError(f"the true boxes of '{clip.name}' are withheld: send the results to the benchmark's server.")
    return Truth(clip.name, boxes, np.asarray(clip.visible, dtype=bool), clip.size, tuple(clip.attributes))


def folder_of(root: str, remedy: str) -> Path:
    """Return a data set's folder.

    Raises:
        DataError: there is none; the message names the nearest.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise DataError(f"folder '{folder}' does not exist.{near_miss(folder.name, siblings)} Check it, or {remedy}.")
    return folder


def folders_in(folder: Path) -> list[Path]:
    """List the folders in a folder by name, without hidden ones and those that systems make."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def check_found(found: int, folder: Path, what: str, remedy: str) -> None:
    """Check that a folder holds clips at all.

    Raises:
        DataError: it has none.
    """
    if not found:
        raise DataError(f"'{folder}' has no {what}: {remedy}.")


def check_there(lacking: Sequence[str], all_names: int, folder: Path, remedy: str) -> None:
    """Check that no sequence of a list is missing.

    Raises:
        DataError: some are; names the first and their number.
    """
    if lacking:
        raise DataError(
            f"{len(lacking):,} of {all_names:,} sequences are not in '{folder}', {listed(lacking)}: {remedy}."
        )


def pictures_in(folder: Path) -> list[Path]:
    """List the pictures of a folder, sorted by their numbers as numbers: ``2.jpg`` before ``10.png``.

    Raises:
        DataError: the folder is missing.
    """
    if not folder.is_dir():
        raise DataError(f"folder of frames '{folder}' does not exist: get the sequence again.")
    return sorted(
        (path for path in folder.iterdir() if named_as_picture(path.name)), key=lambda path: natural_order(path.name)
    )


def numbered(folder: Path, numbers: Iterable[int], name: str) -> tuple[Path, ...]:
    """Find the frames of these numbers, whatever their digits and endings.

    Raises:
        DataError: the folder or a frame is missing; names the first and their number.
    """
    there = {int(path.stem): path for path in reversed(pictures_in(folder)) if path.stem.isdecimal()}
    wanted = list(numbers)
    lacking = [number for number in wanted if number not in there]
    if lacking:
        raise DataError(
            f"'{name}': {len(lacking):,} of {len(wanted):,} frames are not in '{folder}', the first is number "
            f"{lacking[0]}: get the sequence again."
        )
    return tuple(there[number] for number in wanted)


def footage_of(
    name: str,
    frames: Sequence[Path],
    boxes: np.ndarray,
    visible: np.ndarray | None = None,
    attributes: tuple[str, ...] = (),
    size: Size | None = None,
) -> Footage:
    """Put frames and boxes together; frames beyond the last box are left out, and a note says so.

    Args:
        name: of the clip.
        frames: the pictures, in order.
        boxes: (L, 4), one per frame.
        visible: (L,); None = where the box has an area.
        attributes: see :class:`Footage`.
        size: see :class:`Footage`.

    Raises:
        DataError: there are fewer frames than boxes, or no boxes.
    """
    count = len(boxes)
    if not count or len(frames) < count:
        raise DataError(f"'{name}' has {len(frames):,} frames and {count:,} boxes: get the sequence again.")
    seen = has_area(boxes) if visible is None else np.asarray(visible, dtype=bool)
    more = len(frames) - count
    notes = (f"'{name}': {more:,} frame{'' if more == 1 else 's'} after the last box left out",) if more else ()
    return Footage(FrameFiles(frames[:count]), boxes, seen, attributes, size, notes)


def with_first_box(name: str, frames: Sequence[Path], boxes: np.ndarray, size: Size | None = None) -> Footage:
    """Put all frames together with the only box that is known, that of the first; the target may be anywhere after.

    Raises:
        DataError: there are no frames or no box.
    """
    if not len(frames) or not len(boxes):
        raise DataError(f"'{name}' has {len(frames):,} frames and {len(boxes):,} boxes: get the sequence again.")
    known = np.full((len(frames), 4), np.nan)
    known[0] = boxes[0]
    return Footage(FrameFiles(frames), known, np.ones(len(frames), dtype=bool), (), size)


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Tell which boxes have an area, (L, 4) -> (L,) bool; NaN has none."""
    return (boxes[:, 2:] > 0).all(axis=1)
