"""What every set of pictures is, whatever a task learns from it: stable keys, and pictures read when asked for.

Splits, samplers and hashes work on keys, so the same subset is found again on another machine, and every result records
which pictures it used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image


class PictureSet:
    """Pictures with stable names.

    A subclass says what is told of them beside that, and has :attr:`keys`, :meth:`image`, :meth:`subset` and
    :meth:`facts`.

    Attributes:
        name: a short name used in tables, such as ``fluent`` or ``test``.
        keys: one stable name per picture, such as ``cats/01.jpg``; unique.
    """

    name: str
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, index: int) -> Image.Image:
        """Load picture `index`, RGB, upright.

        Raises:
            DataError: it is missing, damaged or no picture.
        """
        raise NotImplementedError

    def subset(self, indices: Sequence[int]) -> Any:
        """Return the pictures at `indices`, in that order, as a set of the same kind."""
        raise NotImplementedError

    def facts(self) -> Iterable[object]:
        """Return what the set's identity rests on beside keys, one for each picture: such as its class."""
        raise NotImplementedError

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 over sorted (key, fact) pairs: the identity of the set."""
        lines = sorted(f"{key}\t{fact}" for key, fact in zip(self.keys, self.facts(), strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
