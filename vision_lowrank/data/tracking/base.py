"""What a clip is: frames in order, and the box of one object, the *target*, in each of them.

A box is left, top, width, height in pixels as edges, ``(0, 0, W, H)`` is the whole frame: what the field's text files
hold, and ``Boxes.from_xywh`` reads. Readers of data sets and makers of clips fulfil this contract.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import DataError
from ..boxes import Size


class Clip:
    """Frames with one target; a subclass has the attributes, a length, and :meth:`frame`.

    Attributes:
        name: stable and unique in its set, such as ``airplane-1``.
        boxes: (L, 4) float64, left, top, width, height of the target in pixels; a row of NaN where none is known.
        visible: (L,) bool, whether the target can be seen.
        attributes: what makes it hard, such as ``("occlusion", "distractor")``.
        size: (width, height) of every frame in pixels.
    """

    name: str
    boxes: np.ndarray
    visible: np.ndarray
    attributes: tuple[str, ...]
    size: Size

    def __len__(self) -> int:
        """Count the frames, L."""
        raise NotImplementedError

    def box(self, index: int) -> np.ndarray:
        """Return the target's box in frame `index`, a row (4,) of `boxes`."""
        return self.boxes[index]

    def sees(self, index: int) -> bool:
        """Tell whether the target can be seen in frame `index`."""
        return bool(self.visible[index])

    def frame(self, index: int) -> np.ndarray:
        """Read frame `index`, 0 <= index < L, as (H, W, 3) uint8 RGB.

        Raises:
            DataError: it is missing, damaged or of another size.
            IndexError: there is no such frame.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ClipSet:
    """Clips with different names.

    Attributes:
        name: a short name used in tables, such as ``lasot`` or ``test``.
        clips: the clips.
        made_of: what the clips' content rests on beside their names, such as the options they are made by.
    """

    name: str
    clips: Sequence[Clip] = field(repr=False)
    made_of: str = ""

    def __post_init__(self) -> None:
        names = [clip.name for clip in self.clips]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"clip '{twice}' is twice in '{self.name}': give every clip a name of its own.")

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[index]

    def subset(self, indices: Sequence[int]) -> ClipSet:
        """Return the clips at `indices`, in that order."""
        return replace(self, clips=tuple(self.clips[index] for index in indices))

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 over sorted names and lengths, and `made_of`: the identity of the set.

        Boxes are no part of it, as those of a benchmark's test set may be unknown.
        """
        lines = sorted(f"{clip.name}\t{len(clip)}" for clip in self.clips)
        return hashlib.sha256("\n".join([*lines, *filter(None, [self.made_of])]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ClipSplits:
    """What a data set of clips gives to a task.

    Attributes:
        train: clips that pairs of frames are drawn from; empty where a data set is for testing only.
        val: clips for selection; empty where there are none.
        tests: named test sets.
        mixture: sets that pairs of frames are drawn from instead of `train`; empty where that is the only one.
        weights: share of each set of the mixture; equal where there are none.
    """

    train: ClipSet
    val: ClipSet
    tests: dict[str, ClipSet]
    mixture: tuple[ClipSet, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def sources(self) -> tuple[ClipSet, ...]:
        """The sets that training pairs are drawn from; none where there are no training clips."""
        return self.mixture or ((self.train,) if len(self.train) else ())
