"""Which pictures a run trains on: the few-shot draws of CoOp and CLIP-LoRA, and splits that keep groups together.

Few-shot draw. With the generator seeded by the run's seed, classes taken in order of their first picture, and n_c
pictures in class c, both samplers draw ``sample(pictures of c, K)`` from train and then ``min(K, 4)`` from val:

* ``coop`` (Zhou et al., IJCV 2022, as in Dassl): train first, then val; a class with n_c < K gives all its pictures
  and uses no randomness;
* ``clip_lora`` (Zanella and Ben Ayed, CVPRW 2024): val first, then train; a class with n_c < K is drawn K times with
  replacement. Of a data set whose validation pictures come from train (ImageNet), one ``sample(pictures of c,
  K + min(K, 4))`` per class gives both: the first K train, the others validate.

``random.Random(seed)`` is the generator that ``random.seed(seed)`` gives globally, so the same pictures come out.

Grouped split. Each class of n pictures has a quota per split: its minimum m_s (scaled by min(1, n / Σ m) in small
classes) plus its fraction f_s of what is left, q_s = m_s + f_s (n - Σ m). Groups, largest first and then in the order
of a seeded hash, go to the split that lacks most. A hash, not a shuffle: a new picture does not move the others.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from ..errors import DataError, near_miss
from .base import ImageSet, Splits

Sampler = Literal["coop", "clip_lora"]
SAMPLERS = ("coop", "clip_lora")
MAX_VAL_SHOTS = 4


def draw_shots(
    splits: Splits, shots: int | None, seed: int, sampler: Sampler = "coop", *, allow_fewer: bool = False
) -> tuple[ImageSet, ImageSet | None]:
    """Draw :func:`few_shot` of a data set, or load the selection it has on disk for these shots and this seed.

    Args:
        splits: the data set.
        shots, seed, sampler, allow_fewer: as in :func:`few_shot`; shots None takes all pictures, and all that validate.

    Raises:
        DataError: as in :func:`few_shot`, or the data set has CoOp's selections and `sampler` is another.
    """
    if shots is None:
        return splits.train, splits.val if splits.val is not None and len(splits.val) else None
    if splits.cached is not None:
        if sampler != "coop":
            raise DataError(f"the selections on disk are CoOp's, not '{sampler}': set data.shots_cache=false.")
        selection = splits.cached(shots, seed)
        if selection is not None:
            _check_counts(selection[0], shots, allow_fewer)
            return selection
    return few_shot(
        splits.train, shots, seed, sampler, splits.val, allow_fewer=allow_fewer, val_from_train=splits.val_from_train
    )


def few_shot(
    images: ImageSet,
    shots: int,
    seed: int,
    sampler: Sampler = "coop",
    val: ImageSet | None = None,
    *,
    allow_fewer: bool = False,
    val_from_train: bool = False,
) -> tuple[ImageSet, ImageSet | None]:
    """Draw K pictures per class for training and min(K, 4) for validation.

    Args:
        images: the training pool.
        shots: K, pictures per class.
        seed: seed of the draw.
        sampler: whose draw to reproduce, see the module docstring.
        val: the validation pool; classes short of pictures there follow the sampler's rule without an error.
        allow_fewer: accept training classes with fewer than K pictures, as the sampler does. With ``clip_lora``
            such a class repeats pictures, so keys are then not unique.
        val_from_train: `images` is all there is: ``clip_lora`` takes validation pictures from it, ``coop`` has none.

    Returns:
        The training set and the validation set; the latter is None where `val` is None or empty.

    Raises:
        DataError: `sampler` is unknown, `shots` is below 1, or a class has too few training pictures.
    """
    if sampler not in SAMPLERS:
        raise DataError(f"unknown sampler '{sampler}'.{near_miss(sampler, SAMPLERS)} Known: {', '.join(SAMPLERS)}.")
    if shots < 1:
        raise DataError(f"task.shots is {shots}: draw at least 1 picture per class.")
    rng, few_val = random.Random(seed), min(shots, MAX_VAL_SHOTS)
    if val_from_train and sampler == "clip_lora":
        return _draw_with_val(rng, images, shots, few_val)
    _check_counts(images, shots, allow_fewer)
    draw = _draw_all_if_short if sampler == "coop" else _draw_repeated_if_short
    if val is None or not len(val):
        return draw(rng, images, shots), None
    if sampler == "coop":
        train = draw(rng, images, shots)
        return train, draw(rng, val, few_val)
    drawn_val = draw(rng, val, few_val)
    return draw(rng, images, shots), drawn_val


def split_by_group(
    images: ImageSet,
    fractions: Sequence[float],
    seed: int,
    groups: Sequence[str],
    minimum: Sequence[int] | None = None,
    settled: Mapping[str, int] | None = None,
) -> tuple[ImageSet, ...]:
    """Split each class by `fractions`, all pictures of a group on one side, also where a group spans classes.

    Args:
        images: what to split; order within it is kept in every part.
        fractions: one share per part, summing to 1.
        seed: seed of the hash that orders the groups.
        groups: one group name per picture; ``images.keys`` splits picture by picture.
        minimum: pictures per class that each part gets before `fractions` share out the rest; default none.
        settled: group name -> part, for groups whose side is known, such as from a split by other classes.

    Returns:
        One set per fraction.

    Raises:
        DataError: a part with a positive share gets no picture at all.
    """
    minimum = minimum or [0] * len(fractions)
    side = dict(settled or {})
    for indices in images.by_class():
        lacking = _quotas(len(indices), fractions, minimum)
        sizes = Counter(groups[i] for i in indices)
        for group in sorted(sizes, key=lambda name: (-sizes[name], _digest(seed, name))):
            part = side.setdefault(group, lacking.index(max(lacking)))
            lacking[part] -= sizes[group]
    parts = tuple(
        images.subset([i for i, group in enumerate(groups) if side[group] == part]) for part in range(len(fractions))
    )
    for part, fraction in zip(parts, fractions, strict=True):
        if fraction > 0 and not len(part):
            shares = ", ".join(f"{share:g}" for share in fractions)
            raise DataError(
                f"data set '{images.name}' has too few pictures per class ({len(images)} in {len(images.classes)} "
                f"classes) to split by {shares}: add pictures, or give separate folders."
            )
    return parts


def _check_counts(images: ImageSet, shots: int, allow_fewer: bool) -> None:
    if allow_fewer:
        _require(images, 1, "add pictures")
    else:
        _require(images, shots, "add pictures, lower task.shots, or set task.allow_fewer=true")


def _require(images: ImageSet, needed: int, remedy: str) -> None:
    counts = [len(indices) for indices in images.by_class()]
    short = [(count, name) for count, name in zip(counts, images.classes, strict=True) if count < needed]
    if short:
        count, name = short[0]
        others = f" (and {len(short) - 1} more classes)" if len(short) > 1 else ""
        raise DataError(f"class '{name}'{others} has {count} training pictures, {needed} needed: {remedy}.")


def _groups_in_order(images: ImageSet) -> list[list[int]]:
    """List the indices of each class that has pictures, classes in order of their first picture."""
    return sorted((indices for indices in images.by_class() if indices), key=lambda indices: indices[0])


def _draw_all_if_short(rng: random.Random, images: ImageSet, shots: int) -> ImageSet:
    drawn = [rng.sample(group, shots) if len(group) >= shots else group for group in _groups_in_order(images)]
    return images.subset([index for group in drawn for index in group])


def _draw_repeated_if_short(rng: random.Random, images: ImageSet, shots: int) -> ImageSet:
    drawn = [
        rng.sample(group, shots) if len(group) >= shots else rng.choices(group, k=shots)
        for group in _groups_in_order(images)
    ]
    return images.subset([index for group in drawn for index in group])


def _draw_with_val(rng: random.Random, images: ImageSet, shots: int, few_val: int) -> tuple[ImageSet, ImageSet]:
    """Draw K + v pictures per class once, K to train and v to validate."""
    both = shots + few_val
    _require(images, both, f"add pictures or lower task.shots ({few_val} of each class validate)")
    drawn = _draw_all_if_short(rng, images, both)
    train = [position for position in range(len(drawn)) if position % both < shots]
    return drawn.subset(train), drawn.subset([p for p in range(len(drawn)) if p % both >= shots])


def _quotas(count: int, fractions: Sequence[float], minimum: Sequence[int]) -> list[float]:
    scale = min(1.0, count / max(sum(minimum), 1))
    floors = [scale * value for value in minimum]
    rest = count - sum(floors)
    return [floor + fraction * rest for floor, fraction in zip(floors, fractions, strict=True)]


def _digest(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\t{name}".encode()).hexdigest()
