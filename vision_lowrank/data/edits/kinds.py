"""All kinds of edit by name. A kind's cues, category and sentences stand beside its code."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import DataError, near_miss
from . import appearance, copy_move, degrade, removal, replacement, resizing, splice, text
from .base import Kind

_FAMILIES = (splice, copy_move, removal, replacement, appearance, degrade, text, resizing)

KINDS: dict[str, Kind] = {kind.name: kind for family in _FAMILIES for kind in family.KINDS}


def check_kinds(names: Sequence[str]) -> tuple[str, ...]:
    """Return `names` without repetitions, in the order of ``KINDS``.

    Raises:
        DataError: a name is unknown.
    """
    for name in names:
        if name not in KINDS:
            raise DataError(f"unknown kind of edit '{name}'.{near_miss(name, KINDS)} Known: {', '.join(KINDS)}.")
    return tuple(name for name in KINDS if name in names)
