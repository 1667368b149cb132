"""Reading picture files of any kind as 8-bit RGB, and finding the broken ones early."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

# What a complete file of a format has at its end: finding it spares decoding the picture.
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 4096
_READERS = 8


def read_image(path: str | Path, name: str | None = None) -> Image.Image:
    """Read a picture file as RGB.

    The EXIF orientation is applied (if the data can be parsed), transparency is laid on white, 16-bit greys are scaled
    to 8 bits (v / 257; integer or float greys outside 0…65535 from their own range, NaN and infinity as 0), CMYK and
    palettes are converted, an animation gives its first frame.

    Args:
        path: the file.
        name: what to call it in messages; default the path.

    Raises:
        DataError: the file is missing, no picture, damaged, without a finite value, or larger than PIL's
            decompression-bomb limit.
    """
    name = name or str(path)
    try:
        with Image.open(path) as picture:
            picture.load()
            with suppress(Exception):  # in place: turned already where only rewriting malformed EXIF data fails
                ImageOps.exif_transpose(picture, in_place=True)
            return to_rgb(picture)
    except FileNotFoundError:
        raise DataError(f"picture '{name}' does not exist.") from None
    except Exception as error:  # on damaged files PIL's decoders raise whatever their parsers stumble on
        raise DataError(f"picture '{name}' cannot be read: {_reason(error)}. Replace or remove it.") from None


def read_under(root: Path, key: str) -> Image.Image:
    """Read ``root / key`` by :func:`read_image`, called `key` in messages."""
    return read_image(root / key, key)


def to_rgb(picture: Image.Image, background: str = "white") -> Image.Image:
    """Turn any PIL picture into 8-bit RGB; transparent parts show `background`, a colour PIL knows or ``#rrggbb``."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _eight_bit(picture).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        canvas = Image.new("RGBA", picture.size, background)
        return Image.alpha_composite(canvas, picture).convert("RGB")
    return picture.convert("RGB")


def readable(root: Path, keys: Sequence[str], skip_broken: bool) -> list[str]:
    """List the keys of all pictures that open, in order; a check without decoding where the format allows.

    Opens each header and looks for the end marker of JPEG and PNG (0.1 to 0.2 ms a picture from a warm disk); other
    formats, and files whose marker is missing, are decoded. Damage in the middle of a file shows when it is read.

    Args:
        root: folder that `keys` are relative to.
        keys: POSIX paths.
        skip_broken: leave broken pictures out and warn with their number, instead of an error.

    Raises:
        DataError: pictures are broken and `skip_broken` is off; names the first.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        problems = list(pool.map(lambda key: _problem(root / key), keys))
    broken = [(key, problem) for key, problem in zip(keys, problems, strict=True) if problem]
    if broken:
        key, problem = broken[0]
        what = f"{len(broken)} of {len(keys)} pictures in '{root}' cannot be read, the first is '{key}': {problem}"
        if not skip_broken:
            raise DataError(f"{what}. Replace or remove them; in a recipe, data.skip_broken=true leaves them out.")
        warnings.warn(f"{what}. Left out.", stacklevel=2)
    return [key for key, problem in zip(keys, problems, strict=True) if not problem]


def is_picture(path: Path) -> bool:
    """Tell whether a file's name ends like a picture's and is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def listed(names: Iterable[str], most: int = 3) -> str:
    """Quote names for a message, the first `most` of them and the number of the others."""
    quoted = [f"'{name}'" for name in names]
    return ", ".join(quoted[:most]) + (f" and {len(quoted) - most} more" if len(quoted) > most else "")


def _problem(path: Path) -> str | None:
    """Tell why a file cannot be read, or return None."""
    try:
        with Image.open(path) as picture:
            ending = _ENDINGS.get(picture.format or "")
            if ending is None or ending not in _tail(path):
                picture.load()
    except Exception as error:  # as in read_image
        return _reason(error)
    return None


def _tail(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read()


def _reason(error: Exception) -> str:
    """Put PIL's exception in words of one line without the path, which the message names already."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _eight_bit(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise DataError("no value is finite")
    low, high = float(values[finite].min()), float(values[finite].max())
    if picture.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scaled = (values - low) / max(high - low, np.finfo(np.float64).tiny) * 255
    return Image.fromarray(np.rint(np.where(finite, scaled, 0)).astype(np.uint8))
