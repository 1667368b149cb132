"""Which two frames a training pair has (LoRAT, arXiv 2403.05231): a function of (seed, number) alone, in any order.

    set        by weight: numbers come in blocks, and every block has each set's share, in an order of its own
    sequence   by repeated shuffling: the k-th draw of a set is the k-th of its shuffles laid end to end. A sequence is
               a clip, or a group of clips of which one is drawn, as of the objects in one picture
    template   uniform over the frames that show the target
    search     uniform over such frames at most `gap` away, the template's left out; where there is none, the same frame

A frame is tried before all frames are looked at, as clips that are drawn as they are read know a frame's target only by
drawing it: a frame drawn again until it shows the target is uniform over those that do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ...errors import DataError, UserError
from .base import Clip, ClipSet
from .reading import FileClips

GAP = 100  # frames
TRIED = 20
BLOCK, SEQUENCE, FRAMES = range(3)  # streams of random numbers
FINEST = 1000  # parts that shares are counted in, and the longest block


class Pair(NamedTuple):
    """Two frames of a clip.

    Attributes:
        clip: the clip.
        template: number of the first frame.
        search: number of the second.
    """

    clip: Clip
    template: int
    search: int


@dataclass(frozen=True)
class PairSource:
    """Draws pairs from sets of clips.

    Attributes:
        sets: of clips, none empty.
        weights: share of each; the same for all where there are none.
        gap: most frames between template and search frame.
    """

    sets: Sequence[ClipSet]
    weights: tuple[float, ...] = ()
    gap: int = GAP

    def __post_init__(self) -> None:
        if not self.sets or not all(len(clips) for clips in self.sets):
            empty = next((f"'{clips.name}' has no clips" for clips in self.sets if not len(clips)), "there are no sets")
            raise DataError(f"pairs cannot be drawn: {empty}; give training clips.")
        block_of(self.weights or (1.0,) * len(self.sets))
        if self.weights and len(self.weights) != len(self.sets):
            raise UserError(f"{len(self.weights)} weights for {len(self.sets)} sets of clips: give one each.")

    def draw(self, seed: int, number: int, attempt: int = 0) -> Pair:
        """Draw pair `number`, 0 or more; a further `attempt` draws another of the same set in its place.

        A clip that never shows its target is passed over.

        Raises:
            DataError: many clips in turn never show their targets (names the last).
        """
        chosen, count = self._set(seed, number)
        rng = np.random.default_rng((seed, FRAMES, number, attempt))
        clips = self.sets[chosen]
        groups = clips.groups if isinstance(clips, FileClips) and clips.groups else None
        sequences = len(groups) if groups else len(clips)
        epoch, place = divmod(count, sequences)
        index = int(rng.integers(sequences)) if attempt else int(_shuffled(sequences, seed, chosen, epoch)[place])
        for _ in range(TRIED):
            clip = clips[int(groups[index][int(rng.integers(len(groups[index])))]) if groups else index]
            frames = draw_frames(clip, self.gap, rng)
            if frames is not None:
                return Pair(clip, *frames)
            index = int(rng.integers(sequences))
        raise DataError(
            f"clip '{clip.name}' and {TRIED - 1} others never show their targets: leave them out of training."
        )

    def _set(self, seed: int, number: int) -> tuple[int, int]:
        """Return which set pair `number` is from, and how many pairs before it are from the same."""
        counts = block_of(self.weights or (1.0,) * len(self.sets))
        block, place = divmod(number, sum(counts))
        order = _order(counts, seed, block)
        chosen = int(order[place])
        return chosen, block * counts[chosen] + int((order[:place] == chosen).sum())


def block_of(weights: Sequence[float]) -> tuple[int, ...]:
    """Return the fewest whole numbers in the proportion of `weights`, to a thousandth.

    Raises:
        UserError: a weight is negative or no number, all are 0, or one is too small to be told from 0.
    """
    total = math.fsum(weights)
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not total:
        raise UserError(f"weights {tuple(weights)}: give numbers of 0 or more, one at least above 0.")
    parts = [Fraction(weight / total).limit_denominator(FINEST) for weight in weights]
    whole = math.lcm(*(part.denominator for part in parts))
    if whole > FINEST:  # shares that have no common parts: rounded to thousandths
        parts, whole = [Fraction(round(weight / total * FINEST), FINEST) for weight in weights], FINEST
    counts = [int(part * whole) for part in parts]
    if any(weight and not count for weight, count in zip(weights, counts, strict=True)):
        raise UserError(f"weights {tuple(weights)}: one is less than a thousandth of all: leave it out, or raise it.")
    shared = math.gcd(*counts)
    return tuple(count // shared for count in counts)


def draw_frames(clip: Clip, gap: int, rng: np.random.Generator) -> tuple[int, int] | None:
    """Draw the template's frame and the search crop's by the module's rules; None where no frame shows the target."""
    template = _one_of(clip, range(len(clip)), rng)
    if template is None:
        return None
    search = draw_near(clip, template, gap, rng)
    return template, template if search is None else search


def draw_near(clip: Clip, index: int, gap: int, rng: np.random.Generator) -> int | None:
    """Draw a frame that shows the target, at most `gap` from `index`, which is left out; None where there is none."""
    near = range(max(0, index - gap), min(len(clip), index + gap + 1))
    return _one_of(clip, [each for each in near if each != index], rng)


def shows_target(clip: Clip, index: int) -> bool:
    """Tell whether a frame shows its target, with a box that has an area."""
    box = clip.box(index)
    return clip.sees(index) and bool(np.isfinite(box).all()) and bool((box[2:] > 0).all())


def _one_of(clip: Clip, frames: Sequence[int], rng: np.random.Generator) -> int | None:
    """Draw one of `frames` that show the target, uniformly; None where none does."""
    if not frames:
        return None
    for _ in range(TRIED):
        index = frames[int(rng.integers(len(frames)))]
        if shows_target(clip, index):
            return index
    shown = [index for index in frames if shows_target(clip, index)]
    return shown[int(rng.integers(len(shown)))] if shown else None


@lru_cache(maxsize=8)
def _order(counts: tuple[int, ...], seed: int, block: int) -> np.ndarray:
    """Shuffle the sets of one block, each as often as its share."""
    return np.random.default_rng((seed, BLOCK, block)).permutation(np.repeat(np.arange(len(counts)), counts))


@lru_cache(maxsize=16)
def _shuffled(count: int, seed: int, chosen: int, epoch: int) -> np.ndarray:
    """Shuffle a set's sequences anew; 100,000 take 2 ms, once in an epoch of them."""
    return np.random.default_rng((seed, SEQUENCE, chosen, epoch)).permutation(count)
