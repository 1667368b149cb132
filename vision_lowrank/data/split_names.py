"""The usual names of splits: what ``Train``, ``valid`` and ``test_set`` mean."""

from __future__ import annotations

import re

from ..errors import DataError

SPLITS = ("train", "val", "test")

_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validate", "validation", "dev"),
    "test": ("test", "testing"),
}
_WORDS = "(set|data|images|imgs|pictures|split)"
_MEANING = {name: split for split, names in _NAMES.items() for name in names}


def split_of(name: str) -> str | None:
    """Return which split a name means, in any case, perhaps with set, data, images or split and numbers around it.

    None where it means none.

    >>> split_of("Training_Set"), split_of("val2017"), split_of("tram")
    ('train', 'val', None)
    """
    plain = re.sub(r"[^a-z]", "", name.casefold())
    readings = (plain, re.sub(f"{_WORDS}$", "", plain), re.sub(f"^{_WORDS}", "", plain))
    return next((_MEANING[reading] for reading in readings if reading in _MEANING), None)


def splits_among(names: list[str], where: str) -> dict[str, str]:
    """Return split -> the name that means it, for those of `names` that mean one, in the order of the splits.

    Raises:
        DataError: two names mean one split.
    """
    found: dict[str, str] = {}
    for name in names:
        split = split_of(name)
        if split is not None and found.setdefault(split, name) != name:
            raise DataError(
                f"{where}: '{found[split]}' and '{name}' both mean {split}: keep one of them, or join them."
            )
    return {split: found[split] for split in SPLITS if split in found}


def taken_for(found: dict[str, str]) -> str:
    """Say what was taken for what: ``'Train' is train, 'valid' is val``."""
    return ", ".join(f"'{name}' is {split}" for split, name in found.items())
