"""What the scenes of a split are made of: photographs and emoji that no other split has.

Photographs are divided by the stem of their file name, so that two sizes or formats of one scene under one stem stay
together; emoji by concept, so that near-duplicates and the four drawings of a concept do. Both by the hash of the name.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock

from PIL import Image

from ...errors import DataError
from ..edits.dividing import SPLITS, divide
from ..emoji import Emoji, emoji_table
from ..find_pictures import find_pictures, said
from ..images import read_image, readable
from ..photos import photograph_files

FRACTIONS = (0.7, 0.1, 0.2)
LONGEST = 640  # pixels: a photograph's longest side in memory
MEMORY = 500_000_000  # bytes of decoded photographs
SHIPPED = "shipped"
CUT_OUT = "photograph"  # the class of what is cut out of one


@dataclass(frozen=True)
class Pool:
    """What the scenes of one split are made of.

    Attributes:
        photographs: (key, file) of each.
        emoji: rows of the emoji table.
    """

    photographs: tuple[tuple[str, Path], ...] = field(repr=False)
    emoji: tuple[Emoji, ...] = field(repr=False)

    @cached_property
    def by_subgroup(self) -> dict[str, list[Emoji]]:
        """The emoji of each sub-group."""
        groups = defaultdict(list)
        for row in self.emoji:
            groups[row.subgroup].append(row)
        return dict(groups)

    def photograph(self, number: int) -> Image.Image:
        """Read photograph `number`, RGB, its longest side at most 640 pixels; decoded ones are kept, up to 500 MB.

        Raises:
            DataError: it is missing or damaged.
        """
        key, path = self.photographs[number]
        return _DECODED.read(key, path)


def pools(folders: Sequence[str] | None) -> dict[str, Pool]:
    """Divide photographs and emoji among train, val and test.

    Args:
        folders: of photographs, searched in depth; None = scikit-image's.

    Raises:
        DataError: a folder is missing, twice there or cannot be listed, or there are too few photographs for three
            splits.
    """
    files = photograph_files() if folders is None else _files(folders)
    sides = divide((_stem(key) for key in files), FRACTIONS)
    places = divide((row.concept for row in emoji_table()), FRACTIONS)
    found = {
        split: Pool(
            tuple((key, files[key]) for key in sorted(files) if sides[_stem(key)] == split),
            tuple(row for row in emoji_table() if places[row.concept] == split),
        )
        for split in SPLITS
    }
    if not all(pool.photographs for pool in found.values()):
        raise DataError(
            f"{len(set(sides))} different photographs cannot be divided into train, val and test: "
            "give folders with 10 or more."
        )
    return found


@lru_cache(maxsize=1)
def class_names() -> tuple[str, ...]:
    """List the classes of objects, index = label: the groups of emoji, and ``photograph`` for cut-outs."""
    return (*dict.fromkeys(row.group for row in emoji_table()), CUT_OUT)


@lru_cache(maxsize=1)
def label_of() -> dict[str, int]:
    """Map each class to its label."""
    return {name: label for label, name in enumerate(class_names())}


class _Decoded:
    """Decoded photographs, the least recently used forgotten first; for several threads."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[Path, Image.Image] = OrderedDict()
        self._bytes, self._lock = 0, Lock()

    def read(self, key: str, path: Path) -> Image.Image:
        with self._lock:
            if path in self._pictures:
                self._pictures.move_to_end(path)
                return self._pictures[path]
        picture = read_image(path, key)
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC, reducing_gap=2.0)
        with self._lock:
            if path not in self._pictures:
                self._pictures[path] = picture
                self._bytes += _size(picture)
            while self._bytes > MEMORY:
                self._bytes -= _size(self._pictures.popitem(last=False)[1])
        return picture


_DECODED = _Decoded()


def _size(picture: Image.Image) -> int:
    return picture.width * picture.height * 4  # Pillow gives RGB four bytes a pixel


def _stem(key: str) -> str:
    return Path(key).stem


def _files(folders: Sequence[str]) -> dict[str, Path]:
    """Find the photographs that can be read; keys are paths below their folder, after its number where there are more.

    What cannot be read is left out with a warning.
    """
    roots = [Path(folder).expanduser() for folder in folders]
    files: dict[str, Path] = {}
    for number, root in enumerate(roots):
        if root.resolve() in {other.resolve() for other in roots[:number]}:
            raise DataError(f"folder of photographs '{root}' is given twice: leave one out.")
        if not root.is_dir():
            raise DataError(f"folder of photographs '{root}' does not exist: give folders, or {SHIPPED}.")
        found = find_pictures(root).check(root)
        if found.left_out:
            warnings.warn(f"'{root}': {said(found.left_out)}.", stacklevel=4)
        prefix = f"{number}/" if len(roots) > 1 else ""
        files |= {prefix + key: root / key for key in readable(root, found.pictures, skip_broken=True)}
    return files
