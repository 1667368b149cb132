"""What a selection is compared with: random choices of the same size, other seeds, and how far choices agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from ..errors import UserError
from .gates import Unit


def random_selection(units: Sequence[Unit], count: int, seed: int) -> list[str]:
    """Draw the module paths of `count` units without replacement, in the order of the model.

    Raises:
        UserError: `count` is not between 1 and the number of units.
    """
    if not 1 <= count <= len(units):
        raise UserError(f"random selection of {count} units out of {len(units)}: choose from 1 to {len(units)}.")
    drawn = np.random.default_rng(seed).choice(len(units), count, replace=False)
    return [path for i in sorted(drawn.tolist()) for path in units[i].layers]


def jaccard(one: Collection[str], other: Collection[str]) -> float:
    """Compute the size of the intersection over the size of the union; 1 for two empty choices."""
    union = set(one) | set(other)
    return len(set(one) & set(other)) / len(union) if union else 1.0


def majority(choices: Sequence[Collection[str]]) -> list[str]:
    """Keep what more than half of the choices hold, such as those of three seeds; in order of appearance."""
    votes = Counter(path for choice in choices for path in dict.fromkeys(choice))
    return [path for path, count in votes.items() if 2 * count > len(choices)]
