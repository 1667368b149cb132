"""Which pictures a training sample holds: twins, balanced pairs, or equal draws from several sets.

Every rule is a function of (seed, index, position) alone, where `index` is what the loop's permutation gives and
`position` the number of samples drawn before: the same whatever the number of workers or processes, or after a resume.

* :class:`Twins`: index = a source that has both; its real picture and ONE of its edits: an editor evenly among those
  that edited it, then a category evenly, then one evenly. 1:1, and the twin is there for contrast. An epoch = all such
  sources.
* :class:`Balanced`, for sets without twins: one picture of every label; those of the most frequent label in order, the
  others at random (edits again by editor and category first). An epoch = the size of the most frequent label.
* :class:`EqualDraws` (CAT's protocol, IMDL-BenCo's BalancedDataset): n sets, an epoch of n · 1840 samples; sample i is
  a random picture of set i // 1840.
* :class:`Single`: sample i is picture i.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np

from ...errors import DataError
from .base import EDITED, REAL, ManipulationSet
from .joined import JoinedSet

Kind: TypeAlias = Literal["auto", "twins", "balanced", "equal", "single"]
Choice: TypeAlias = list[list[np.ndarray]]  # by editor, by category, indices of pictures


class Draws(Protocol):
    """The pictures of every sample of an epoch."""

    def __len__(self) -> int:
        """Count the samples per epoch."""
        ...

    def draw(self, index: int, position: int) -> tuple[int, ...]:
        """Draw sample `index` as number `position`: the indices of its pictures."""
        ...


def draws_of(images: ManipulationSet, seed: int, kind: Kind = "auto") -> Draws:
    """Choose the rule for a set.

    Args:
        images: the training pictures.
        seed: of the random choices.
        kind: ``auto`` = ``equal`` for joined sets with draws, ``twins`` where at least half of the edited pictures
            have their original in the set, ``balanced`` where there are real and edited ones, else ``single``.

    Raises:
        DataError: the set lacks what `kind` needs.
    """
    if kind == "auto":
        kind = _fitting(images)
    if kind == "equal":
        if not isinstance(images, JoinedSet) or images.draws is None:
            raise DataError(f"'{images.name}' is one set: equal draws need several, such as protocol 'cat'.")
        return EqualDraws(images, images.draws, seed)
    if kind == "single":
        return Single(len(images))
    return Twins(images, seed) if kind == "twins" else Balanced(images, seed)


@dataclass(frozen=True)
class Twins:
    """A real picture and one of its edits; see the module docstring.

    Attributes:
        images: the pictures.
        seed: of the random choices.

    Raises:
        DataError: no edited picture has its original in the set.
    """

    images: ManipulationSet
    seed: int
    _order: np.ndarray = field(init=False, repr=False)  # pictures sorted by source, then label
    _spans: np.ndarray = field(init=False, repr=False)  # (S, 3): first real, first edit, end, in _order

    def __post_init__(self) -> None:
        labels, sources = self.images.labels, self.images.sources.codes
        order = np.flatnonzero((labels == REAL) | (labels == EDITED))
        order = order[np.lexsort((order, labels[order], sources[order]))]
        starts = np.flatnonzero(np.diff(sources[order], prepend=-1))
        ends = np.append(starts[1:], len(order))
        edits = np.add.reduceat((labels[order] == REAL).astype(np.int64), starts) + starts if len(order) else starts
        both = (edits > starts) & (edits < ends)
        if not both.any():
            raise DataError(
                f"'{self.images.name}' has no source with a real and an edited picture: set `source_id`, or draw "
                "balanced pictures instead of twins."
            )
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_spans", np.stack([starts, edits, ends], axis=1)[both])

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def edits(self) -> int:
        """Number of edited pictures that can be drawn."""
        return int((self._spans[:, 2] - self._spans[:, 1]).sum())

    def draw(self, index: int, position: int) -> tuple[int, int]:
        """Draw (real, edited)."""
        start, middle, end = self._spans[index]
        random = _generator(self.seed, position)
        real = self._order[start + random.integers(middle - start)]
        return int(real), _pick(_choice(self.images, self._order[middle:end]), random)


@dataclass(frozen=True)
class Balanced:
    """One picture of every label; see the module docstring.

    Attributes:
        images: the pictures.
        seed: of the random choices.

    Raises:
        DataError: all pictures have one label.
    """

    images: ManipulationSet
    seed: int
    _main: np.ndarray = field(init=False, repr=False)
    _labels: tuple[int, ...] = field(init=False, repr=False)
    _choices: tuple[Choice, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        labels, counts = np.unique(self.images.labels, return_counts=True)
        if len(labels) < 2:
            raise DataError(f"'{self.images.name}' has pictures of one label only: it needs real and edited ones.")
        members = [np.flatnonzero(self.images.labels == label) for label in labels]
        object.__setattr__(self, "_main", members[int(counts.argmax())])
        object.__setattr__(self, "_labels", tuple(int(label) for label in labels))
        object.__setattr__(self, "_choices", tuple(_choice(self.images, each) for each in members))

    def __len__(self) -> int:
        return len(self._main)

    def draw(self, index: int, position: int) -> tuple[int, ...]:
        """Draw one picture per label, in order of the labels."""
        random, main = _generator(self.seed, position), int(self._main[index])
        drawn = [_pick(choice, random) for choice in self._choices]
        return tuple(
            main if self.images.labels[main] == label else each for label, each in zip(self._labels, drawn, strict=True)
        )


@dataclass(frozen=True)
class EqualDraws:
    """`draws` random pictures of every joined set; see the module docstring.

    Attributes:
        images: the joined sets.
        draws: per set and epoch.
        seed: of the random choices.
    """

    images: JoinedSet
    draws: int
    seed: int
    _members: tuple[np.ndarray, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        numbers = np.unique(self.images.parts)
        object.__setattr__(self, "_members", tuple(np.flatnonzero(self.images.parts == n) for n in numbers))

    def __len__(self) -> int:
        return self.draws * len(self._members)

    def draw(self, index: int, position: int) -> tuple[int]:
        """Draw a random picture of set index // draws."""
        members = self._members[index // self.draws]
        return (int(members[_generator(self.seed, position).integers(len(members))]),)


@dataclass(frozen=True)
class Single:
    """Every picture once per epoch.

    Attributes:
        size: number of pictures.
    """

    size: int

    def __len__(self) -> int:
        return self.size

    def draw(self, index: int, position: int) -> tuple[int]:
        """Return picture `index`."""
        return (index,)


def _fitting(images: ManipulationSet) -> Kind:
    if isinstance(images, JoinedSet) and images.draws is not None:
        return "equal"
    edited = images.labels == EDITED
    with_real = np.isin(images.sources.codes[edited], images.sources.codes[images.labels == REAL])
    if edited.any() and with_real.mean() >= 0.5:
        return "twins"
    return "balanced" if len(np.unique(images.labels)) > 1 else "single"


def _generator(seed: int, position: int) -> np.random.Generator:
    return np.random.default_rng((seed, position))


def _choice(images: ManipulationSet, indices: np.ndarray) -> Choice:
    """Group `indices` by editor and category; not annotated counts as a name of its own."""
    editors, categories = images.editors.codes[indices], images.categories.codes[indices]
    return [
        [
            indices[(editors == editor) & (categories == category)]
            for category in np.unique(categories[editors == editor])
        ]
        for editor in np.unique(editors)
    ]


def _pick(choice: Choice, random: np.random.Generator) -> int:
    by_category = choice[random.integers(len(choice))]
    members = by_category[random.integers(len(by_category))]
    return int(members[random.integers(len(members))])
