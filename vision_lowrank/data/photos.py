"""Photographs that scikit-image ships inside its wheel: no download, each photograph is its own class.

:func:`photographs` gives the whole pictures. As a data set for training, the same picture on both sides would test
nothing, so each is cut into 4 rows x 8 columns of square tiles (side = width / 8, rows centred): columns 0…3, the left
half, are the training pool (16 tiles), column 4 is for validation (4), columns 5…7 for testing (12). A test tile is
thus a part of the scene that training never saw, but from the same photograph: the task is to recognise a scene's
texture and colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic import Field

from ..config.schema import Section
from ..registry import register
from .base import ImageSet, Splits
from .images import read_image
from .options import Templates

FILES = {
    "astronaut.png": "astronaut",
    "brick.png": "brick wall",
    "camera.png": "cameraman",
    "cell.png": "cell",
    "chelsea.png": "cat",
    "clock_motion.png": "blurred clock",
    "coffee.png": "cup of coffee",
    "coins.png": "coins",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "hubble_deep_field.jpg": "galaxies",
    "ihc.png": "stained tissue",
    "moon.png": "moon surface",
    "motorcycle_left.png": "motorcycle",
    "retina.jpg": "retina",
    "rocket.jpg": "rocket",
}
ROWS, COLUMNS = 4, 8
TRAIN_COLUMNS, VAL_COLUMNS, TEST_COLUMNS = range(4), range(4, 5), range(5, 8)


class PhotosConfig(Section):
    """Options of ``data: {type: photos}``."""

    type: Literal["photos"] = "photos"
    templates: Templates = Field(("a photo of a {}.",), description="prompt templates, {} = class name")


@register("data", "photos", summary="tiles of scikit-image's bundled photographs", config=PhotosConfig, gives="classes")
def photos(config: PhotosConfig) -> Splits:
    """Return tiles of every photograph, see the module docstring; keys such as ``coffee.png/r0c3``."""
    return Splits(
        train=_tiles("train", TRAIN_COLUMNS),
        val=_tiles("val", VAL_COLUMNS),
        tests={"photos": _tiles("test", TEST_COLUMNS)},
        templates=config.templates,
    )


def photographs() -> ImageSet:
    """Return the whole photographs that the installed scikit-image ships; keys are file names."""
    files = _shipped()
    return ImageSet("photos", tuple(FILES[file] for file in files), tuple(range(len(files))), files, _read)


def photograph_files() -> dict[str, Path]:
    """Map the names of the photographs that the installed scikit-image ships to their files."""
    return {file: _folder() / file for file in _shipped()}


def _tiles(name: str, columns: Sequence[int]) -> ImageSet:
    files = _shipped()
    tiles = [f"r{row}c{column}" for row in range(ROWS) for column in columns]
    return ImageSet(
        name=name,
        classes=tuple(FILES[file] for file in files),
        labels=tuple(label for label in range(len(files)) for _ in tiles),
        keys=tuple(f"{file}/{tile}" for file in files for tile in tiles),
        load=_read_tile,
    )


def _folder() -> Path:
    # Finding the package without importing it spares a second.
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data"


@lru_cache(maxsize=1)
def _shipped() -> tuple[str, ...]:
    return tuple(file for file in FILES if (_folder() / file).is_file())


@lru_cache(maxsize=len(FILES))
def _read(file: str) -> Image.Image:
    return read_image(_folder() / file, file)


def _read_tile(key: str) -> Image.Image:
    file, _, tile = key.partition("/")
    row, column = (int(number) for number in tile[1:].split("c"))
    picture = _read(file)
    side = picture.width // COLUMNS
    left, top = column * side, (picture.height - ROWS * side) // 2 + row * side
    return picture.crop((left, top, left + side, top + side))
