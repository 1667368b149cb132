"""Reading one picture file: the picture, and what about the file makes an answer less certain.

The warnings and their rules, all from the file itself:

    small            a side below 128 pixels
    heavy JPEG       estimated quality below 60
    screenshot-like  PNG or BMP of a common screen's size, without a camera's name in its EXIF data
    several frames   an animation or a file of several pages: only the first was looked at
    converted        CMYK, palette, transparency, more than 8 bits per channel

A JPEG's quality is estimated from its luminance quantisation table: the quality whose table, in the scaling of the
Independent JPEG Group that most writers use, has the nearest sum (Pillow writes each of them once; their sums fall
from 16,000 to 64). It is that of the last save only.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.images import open_picture, read_image

SMALL = 128
HEAVY_JPEG = 60

# Common screens, long side first, desktop and hand-held; the long side of a phone's is its height.
SCREENS = frozenset(
    {
        (1280, 720), (1280, 800), (1366, 768), (1440, 900), (1536, 864), (1600, 900), (1680, 1050), (1920, 1080),
        (1920, 1200), (2560, 1440), (2560, 1600), (2880, 1800), (3024, 1964), (3440, 1440), (3456, 2234),
        (3840, 2160), (5120, 2880), (1334, 750), (1792, 828), (2160, 1080), (2340, 1080), (2400, 1080), (2436, 1125),
        (2532, 1170), (2556, 1179), (2622, 1206), (2688, 1242), (2778, 1284), (2796, 1290), (2868, 1320),
        (3088, 1440), (3120, 1440), (3200, 1440), (2048, 1536), (2160, 1620), (2388, 1668), (2732, 2048),
    }
)  # fmt: skip

_CAMERA = (0x010F, 0x0110)  # EXIF: maker and model
_HASHED_AT_ONCE = 2**20


@dataclass(frozen=True)
class Photo:
    """A picture file, read.

    Attributes:
        image: RGB, upright.
        format: what Pillow calls the file's format.
        warnings: sentences, as the module's docstring lists them.
    """

    image: Image.Image
    format: str
    warnings: tuple[str, ...]


def read_photo(path: Path, name: str | None = None) -> Photo:
    """Read a picture file.

    Args:
        path: the file.
        name: what to call it in messages; default the last part of its path.

    Raises:
        DataError: it is missing, no regular file, no picture, damaged or too large to decode.
    """
    try:
        with open_picture(path) as picture:
            kind, warnings = picture.format or "", _of_file(picture)
    except Exception:  # on damaged files PIL's parsers raise whatever they stumble on; read_image says it in words
        kind, warnings = "", []
    image = read_image(path, name or path.name)
    small = [f"smaller than {SMALL} pixels: too little to see"] if min(image.size) < SMALL else []
    return Photo(image, kind, (*small, *warnings))


def sha256(path: Path) -> str | None:
    """Compute the hex digest of a file's bytes; None where it cannot be read or is no regular file."""
    digest = hashlib.sha256()
    try:
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            while block := file.read(_HASHED_AT_ONCE):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def jpeg_quality(picture: Image.Image) -> int | None:
    """Estimate the quality 1…100 of an opened JPEG file; None for other formats."""
    tables = getattr(picture, "quantization", None)
    return int(np.abs(_sums() - sum(tables[0])).argmin()) + 1 if tables and 0 in tables else None


@cache
def _sums() -> np.ndarray:
    """Compute the (100,) sums of the luminance tables of qualities 1…100."""
    sums = []
    for quality in range(1, 101):
        file = io.BytesIO()
        Image.new("L", (8, 8)).save(file, "JPEG", quality=quality)
        sums.append(sum(Image.open(file).quantization[0]))
    return np.array(sums)


def _of_file(picture: Image.Image) -> list[str]:
    """Return warnings from an opened file's header."""
    warnings = []
    quality = jpeg_quality(picture)
    if quality is not None and quality < HEAVY_JPEG:
        warnings.append(f"heavy JPEG compression (quality about {quality}): traces of an edit may be gone")
    of_a_screen = (max(picture.size), min(picture.size)) in SCREENS
    if picture.format in ("PNG", "BMP") and of_a_screen and not _has_camera(picture):
        warnings.append("may be a screenshot: of a screen's size, without camera data")
    if picture.format != "MPO" and getattr(picture, "is_animated", False):  # an MPO's others are previews
        warnings.append("several frames or pages: only the first was looked at")
    return [*warnings, *_conversions(picture)]


def _has_camera(picture: Image.Image) -> bool:
    """Tell whether a picture's EXIF data name a camera; data that cannot be parsed do not."""
    try:
        exif = picture.getexif()
    except Exception:  # PIL's parsers raise whatever they stumble on
        return False
    return any(tag in exif for tag in _CAMERA)


def _conversions(picture: Image.Image) -> list[str]:
    found = []
    deep_grey = picture.mode == "F" or picture.mode.startswith("I")
    if picture.mode in ("CMYK", "YCCK", "LAB", "HSV"):
        found.append(f"converted from {picture.mode}")
    if picture.mode == "P":
        found.append("converted from a palette")
    if deep_grey or any(";16" in str(tile.args) for tile in picture.tile):
        found.append("more than 8 bits per channel: reduced to 8")
    if picture.has_transparency_data and not deep_grey:  # whose transparency read_image leaves out
        found.append("transparent: laid on white")
    return found
