"""Cut-out objects to paste: the built-in emoji, or a folder of pictures with transparency.

Objects are divided among train, val and test as photographs are, so that none of a test edit was seen in training;
near-duplicate emoji ("concepts") stay together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import DataError
from ..emoji import Emoji, emoji_rgba, emoji_table
from ..find_pictures import find_pictures
from ..images import listed, open_picture
from ..options import class_name
from .dividing import SPLITS, divide

STYLE = "fluent"
THINGS = ("animals nature", "food drink", "objects", "activities")


@dataclass(frozen=True)
class Objects:
    """A pool of objects.

    Attributes:
        keys: one per object.
        names: what each is called.
        groups: what each belongs to; objects of a group are never in two splits.
        load: gives an object's picture, RGBA.
        drawn: they are drawings, not cut out of photographs.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    load: Callable[[str], Image.Image] = field(repr=False)
    drawn: bool = False

    def draw(self, rng: np.random.Generator) -> tuple[str, Image.Image]:
        """Draw a random object: its name and RGBA picture, cut to what is not transparent."""
        number = int(rng.integers(len(self.keys)))
        picture = self.load(self.keys[number])
        return self.names[number], picture.crop(picture.getchannel("A").getbbox())

    def at(self, numbers: Sequence[int]) -> Objects:
        """Select some of the objects."""
        parts = (tuple(values[number] for number in numbers) for values in (self.keys, self.names, self.groups))
        return Objects(*parts, self.load, self.drawn)


def objects_by_split(folder: str | None, fractions: tuple[float, float, float]) -> dict[str, Objects]:
    """Divide the objects among the splits; splits without any are left out.

    Args:
        folder: pictures with transparency, searched in depth; None = built-in emoji of things in Fluent's style.
        fractions: shares of train, val and test.

    Raises:
        DataError: the folder is missing or holds no picture with transparency.
    """
    pool = emoji_objects() if folder is None else folder_objects(Path(folder))
    sides = divide(pool.groups, fractions)
    members = {split: [n for n, group in enumerate(pool.groups) if sides[group] == split] for split in SPLITS}
    return {split: pool.at(numbers) for split, numbers in members.items() if numbers}


@lru_cache(maxsize=1)
def emoji_objects() -> Objects:
    """Return emoji of things."""
    rows = [row for row in emoji_table() if _is_thing(row)]
    return Objects(
        tuple(row.code for row in rows),
        tuple(row.name for row in rows),
        tuple(row.concept for row in rows),
        partial(emoji_rgba, STYLE),
        drawn=True,
    )


def folder_objects(folder: Path) -> Objects:
    """Find the pictures below `folder` that have transparent parts; names come from the files'.

    Raises:
        DataError: the folder is missing or no picture in it has transparent parts.
    """
    if not folder.is_dir():
        raise DataError(f"folder of objects '{folder}' does not exist: give one that holds PNGs with transparency.")
    found = sorted(find_pictures(folder).check(folder).pictures)
    keys = tuple(key for key in found if _has_outline(folder / key))
    if not keys:
        other = f", only {listed(found)}" if found else ""
        raise DataError(f"folder '{folder}' has no picture with transparent parts{other}: cut the objects out first.")
    return Objects(keys, tuple(class_name(Path(key).stem) for key in keys), keys, partial(_read_rgba, folder))


def _is_thing(row: Emoji) -> bool:
    return row.group in THINGS or (row.group == "travel places" and row.subgroup.startswith("transport"))


def _read_rgba(folder: Path, key: str) -> Image.Image:
    with open_picture(folder / key) as picture:
        return picture.convert("RGBA")


def _has_outline(path: Path) -> bool:
    """Tell whether a picture is readable and has both transparent and opaque parts."""
    try:
        with open_picture(path) as picture:
            low, high = picture.convert("RGBA").getchannel("A").getextrema()
    except Exception:  # damaged files make PIL's parsers raise whatever they stumble on
        return False
    return low == 0 and high == 255
