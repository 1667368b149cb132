"""What a data set is, in a few lines for people: classes, pictures per split, and how it was read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..metrics.names import told
from .pictures import PictureSet

_NAMED = 10


def class_names(names: Sequence[str]) -> str:
    """Return ``3 classes: cat, dog, fox``, the first ten of them."""
    more = f", and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{len(names):,} class{'' if len(names) == 1 else 'es'}: {', '.join(names[:_NAMED])}{more}"


def picture_counts(sets: Mapping[str, PictureSet | None]) -> str:
    """Return ``pictures: train 70, val 10, test 20``; sets that are not there, or empty, have 0."""
    return "pictures: " + ", ".join(f"{told(name)} {len(images or ()):,}" for name, images in sets.items())


def notes_of(sets: Mapping[str, Any]) -> Iterator[str]:
    """Yield the notes of all sets, each once."""
    yield from dict.fromkeys(note for images in sets.values() if images for note in images.notes)
