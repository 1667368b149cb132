"""The photographs that edits are made of: a folder's or scikit-image's, whole or cut into squares.

A *source* is what becomes one real picture: a photograph reduced to a longest side, or a square of one. Squares of a
photograph do not overlap (a grid about its centre; which of them, if there are more than asked for, is drawn) and share
its `group`, so that they are in one split.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import DataError
from ..find_pictures import find_pictures, said
from ..images import image_size, listed, read_under, readable
from ..photos import photographs
from .base import Pixels
from .dividing import number_of

LEAST_SIDE = 64
LEAST_CONTRAST = 4.0


@dataclass(frozen=True)
class Photograph:
    """One real picture to be.

    Attributes:
        id: unique, fit for a file name.
        photo: key of its photograph.
        split: ``train``, ``val`` or ``test``.
        box: left, top, right, bottom of a square of the photograph; None = all of it.
    """

    id: str
    photo: str
    split: str
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Photographs:
    """Photographs by key.

    Attributes:
        sizes: key -> (width, height), upright.
        digest: 16 hex digits of the SHA-256 over keys and files.
        load: reads one as RGB.
        skipped: why -> how many files were left out.
    """

    sizes: dict[str, tuple[int, int]]
    digest: str
    load: Callable[[str], Image.Image] = field(repr=False)
    skipped: dict[str, int] = field(default_factory=dict)

    def pixels(self, source: Photograph, size: int) -> Pixels:
        """Load a source's pixels, (H, W, 3) uint8, its longest side at most `size`.

        Raises:
            DataError: the photograph is damaged.
        """
        picture = self.load(source.photo)
        if source.box is not None:
            picture = picture.crop(source.box)
        scale = size / max(picture.size)
        if scale < 1:
            sides = tuple(max(1, round(side * scale)) for side in picture.size)
            picture = picture.resize(sides, Image.Resampling.LANCZOS)
        return np.asarray(picture)


def find_photographs(photos: str) -> Photographs:
    """Find the photographs of a folder, or ``builtin``: scikit-image's.

    Files that cannot be read, have a side below 64 pixels or are the same as another are left out with one warning.

    Args:
        photos: a folder, searched in depth; or ``builtin``.

    Raises:
        DataError: the folder is missing or holds no usable photograph.
    """
    if photos == "builtin":
        images = photographs()
        sizes = {key: images.load(key).size for key in images.keys}
        digest = hashlib.sha256()
        for key in images.keys:
            digest.update(key.encode() + images.load(key).tobytes())
        return Photographs(sizes, digest.hexdigest()[:16], images.load)
    root = Path(photos).expanduser()
    if not root.is_dir():
        raise DataError(f"folder of photographs '{photos}' does not exist: give a folder, or builtin.")
    inside = find_pictures(root).check(root)
    if inside.left_out:
        warnings.warn(f"'{root}': {said(inside.left_out)}.", stacklevel=3)
    return _checked(root, sorted(inside.pictures))


def sources_of(photos: Photographs, split_of: dict[str, str], size: int, crops: int, seed: int) -> list[Photograph]:
    """List the sources of all photographs, in the order of their keys.

    Args:
        photos: the photographs.
        split_of: key -> split.
        size: side of the squares.
        crops: most squares of one photograph; 0 = whole photographs.
        seed: of the choice of squares.
    """
    found = []
    for key, extent in photos.sizes.items():
        name, split = _file_name(key), split_of[key]
        if not crops:
            found.append(Photograph(name, key, split))
            continue
        boxes = sorted(_grid(extent, size), key=lambda box, key=key: number_of(seed, key, *box))[:crops]
        found += [Photograph(f"{name}-x{box[0]}y{box[1]}", key, split, box) for box in sorted(boxes)]
    return found


def is_blank(pixels: Pixels) -> bool:
    """Tell whether a picture shows next to nothing: a standard deviation below 4 grey levels."""
    return float(pixels.mean(axis=2).std()) < LEAST_CONTRAST


def _grid(extent: tuple[int, int], size: int) -> list[tuple[int, int, int, int]]:
    """List squares of `size` about the centre of a picture (width, height)."""
    columns, rows = (side // size for side in extent)
    left, top = (extent[0] - columns * size) // 2, (extent[1] - rows * size) // 2
    corners = ((left + column * size, top + row * size) for row in range(rows) for column in range(columns))
    return [(x, y, x + size, y + size) for x, y in corners]


def _file_name(key: str) -> str:
    """Turn a photograph's key into a plain file name that no other key has."""
    stem = Path(key).stem
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-") else "_" for letter in stem)
    return f"{plain[:60]}-{number_of(key) % 16**8:08x}"


def _checked(root: Path, keys: list[str]) -> Photographs:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        good = readable(root, keys, skip_broken=True)
    skipped = {"unreadable": len(keys) - len(good), "too small": 0, "repeated": 0}
    sizes, seen, digest = {}, set(), hashlib.sha256()
    for key in good:
        size, content = _size(root / key), _digest(root / key)
        if size is None:
            skipped["unreadable"] += 1
        elif min(size) < LEAST_SIDE:
            skipped["too small"] += 1
        elif content in seen:
            skipped["repeated"] += 1
        else:
            seen.add(content)
            sizes[key] = size
            digest.update(f"{key}\n{content}\n".encode())
    skipped = {why: count for why, count in skipped.items() if count}
    counts = ", ".join(f"{count} {why}" for why, count in skipped.items())
    if not sizes:
        what = f"of {len(keys)} pictures {counts}" if keys else "no file there is a picture"
        raise DataError(
            f"folder '{root}' holds no photographs to edit: {what}. Photographs of 64 px or more are needed."
        )
    if skipped:
        left_out = [key for key in keys if key not in sizes]
        warnings.warn(f"{counts} of {len(keys)} pictures in '{root}' left out: {listed(left_out)}.", stacklevel=4)
    load = lru_cache(maxsize=1)(partial(read_under, root))
    return Photographs(sizes, digest.hexdigest()[:16], load, skipped)


def _size(path: Path) -> tuple[int, int] | None:
    """Read (width, height), upright; None if the file is damaged."""
    try:
        return image_size(path)
    except DataError:
        return None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
