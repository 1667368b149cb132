"""Clips that are drawn as they are read, numbered from 0: one is made when it is asked for, and is not kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from ..edits.dividing import SPLITS
from ..tracking.base import Clip
from .pools import Pool

C = TypeVar("C", bound=Clip)


@dataclass(frozen=True)
class DrawnClips(Sequence[C]):
    """The clips of a split; a subclass says what one is. Making one must cost nothing: a set asks all for their names.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        pool: what the clips are made of.
        seed: of the data set.
        length: clips there are.
    """

    split: str
    pool: Pool
    seed: int
    length: int

    def make(self, name: str, seed: tuple[int, ...]) -> C:
        """Make the clip called `name`, a function of `seed`, without drawing anything."""
        raise NotImplementedError

    def seed_of(self, number: int) -> tuple[int, int, int]:
        """Return the seed of clip `number`; there is one for any number, so there is no end of clips."""
        return self.seed, SPLITS.index(self.split), number

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> C: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[C, ...]: ...
    def __getitem__(self, index: Any) -> Any:
        """Return clip `index`, or those of a slice."""
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(self.length)))
        number = int(index) + self.length * (index < 0)
        if not 0 <= number < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        return self.make(f"{self.split}-{number:06d}", self.seed_of(number))


def digest_of(*facts: object) -> str:
    """Compute 16 hex digits of what a split's clips are made of."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
