"""Which split a photograph or an object is in: by the SHA-1 of its name, so that it is the same everywhere.

With 100 names or more, ``sha1(name) mod 100`` is compared with the shares in percent, so that a new name moves no other
one. Of fewer, hashes could leave a split empty: their order by SHA-1 is cut at the shares, at least one for each share
above 0 where there are enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ..manipulation.splits import SPLITS, bucket

MANY = 100


def number_of(*parts: object) -> int:
    """Compute 160 bits that depend on `parts` only."""
    return int(hashlib.sha1("\n".join(map(str, parts)).encode()).hexdigest(), 16)


def divide(names: Iterable[str], fractions: tuple[float, float, float]) -> dict[str, str]:
    """Assign a split to each distinct name.

    Args:
        names: such as groups of pictures; repeated ones count once.
        fractions: shares of train, val and test, with sum 1.
    """
    distinct = sorted(set(names), key=number_of)
    train, val, _ = fractions
    if len(distinct) >= MANY:
        first, second = 100 * train, 100 * (train + val)
        places = {name: bucket(name) for name in distinct}
        # 1e-6: 100 (0.7 + 0.1) is 79.99… in floating point
        return {name: SPLITS[(place >= first - 1e-6) + (place >= second - 1e-6)] for name, place in places.items()}
    counts = _counts(len(distinct), fractions)
    sides = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    return dict(zip(distinct, sides, strict=True))


def _counts(total: int, fractions: tuple[float, float, float]) -> list[int]:
    """Divide `total` into whole numbers close to the shares, at least 1 where a share is above 0 if `total` allows."""
    wanted = [fraction > 0 for fraction in fractions]
    if total <= sum(wanted):
        return [int(here and sum(wanted[:place]) < total) for place, here in enumerate(wanted)]
    counts = [max(round(total * fraction), int(fraction > 0)) for fraction in fractions]
    counts[max(range(3), key=lambda place: fractions[place])] += total - sum(counts)
    return counts
