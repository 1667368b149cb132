"""Reading picture files of any kind as 8-bit RGB, and finding the broken ones early.

Only regular files are opened: a pipe would wait for ever. Memory is bounded: Pillow's limit on pixels holds, what needs
more than a byte per channel is converted strip by strip, and of several threads one at a time decodes a large picture.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError

# What cameras and programs write; Pillow reads most of it, and says where it cannot.
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".jpe", ".jfif", ".avif", ".heic", ".heif",
)  # fmt: skip

# What a complete file of a format has at its end: finding it spares decoding the picture.
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_PROGRAMS = ("EPS", "WMF")  # which Pillow would give to an interpreter, for as long as that takes
_TAIL = 4096
_READERS = 8
_LARGE = 16_000_000  # pixels
_STRIP = 4_000_000
LONGEST = 65_535  # pixels: the longest side of a JPEG; what is longer is resized along that side first
PIXELS = 64_000_000  # of pictures looked at together
_LARGE_AT_ONCE = Lock()
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF

T = TypeVar("T")


def open_picture(path: str | Path) -> Image.Image:
    """Open a picture file with Pillow, which reads its header only.

    Raises:
        OSError: it is missing, no regular file, or no picture; and whatever Pillow's parsers raise on damaged files.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("no regular file")
    picture = Image.open(path)
    if picture.format in _PROGRAMS:
        picture.close()
        raise OSError(f"{picture.format} is a program, which is not run")
    return picture


def read_image(path: str | Path, name: str | None = None) -> Image.Image:
    """Read a picture file as RGB.

    The EXIF orientation is applied (if the data can be parsed), transparency is laid on white, 16-bit greys are scaled
    to 8 bits (v / 257; integer or float greys outside 0…65535 from their own range, NaN and infinity as 0), CMYK and
    palettes are converted, an animation gives its first frame.

    Args:
        path: the file.
        name: what to call it in messages; default the path.

    Raises:
        DataError: the file is missing, no regular file, no picture, damaged, without a finite value, or larger than
            PIL's decompression-bomb limit.
    """
    with reading(path, name or str(path)):
        return to_rgb(decoded(path))


def decoded(path: str | Path) -> Image.Image:
    """Decode the first frame of a picture file and turn it as its EXIF data say, if these can be parsed.

    Raises:
        OSError: as :func:`open_picture`, or damaged; and whatever Pillow's parsers raise on damaged files.
    """
    with open_picture(path) as picture, _turn(picture):
        picture.load()
        with suppress(Exception):  # in place: turned already where only rewriting malformed EXIF data fails
            ImageOps.exif_transpose(picture, in_place=True)
        return picture


@contextmanager
def reading(path: str | Path, name: str, what: str = "picture") -> Iterator[None]:
    """Turn what goes wrong inside, while a file is read, into a DataError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{what} '{name}' does not exist.") from None
    except Exception as error:  # on damaged files PIL's decoders raise whatever their parsers stumble on
        raise DataError(f"{what} '{name}' cannot be read: {_reason(error, path)}. Replace or remove it.") from None


def read_under(root: Path, key: str) -> Image.Image:
    """Read ``root / key`` by :func:`read_image`, called `key` in messages."""
    return read_image(root / key, key)


def to_rgb(picture: Image.Image, background: str = "white") -> Image.Image:
    """Turn any PIL picture into 8-bit RGB; transparent parts show `background`, a colour PIL knows or ``#rrggbb``."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _eight_bit(picture).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    if math.prod(picture.size) <= _STRIP:
        return _laid_on(picture, background)
    whole = Image.new("RGB", picture.size)
    for box in _strips(picture):
        whole.paste(_laid_on(picture.crop(box), background), box)
    return whole


def image_size(path: Path, name: str | None = None) -> tuple[int, int]:
    """Read the (width, height) that :func:`read_image` would give, decoding the picture only where its EXIF asks.

    Raises:
        DataError: as :func:`read_image`, where the header shows it.
    """
    with reading(path, name or str(path)), open_picture(path) as picture:
        with suppress(Exception):  # as in decoded
            if (picture.format != "PNG" or _has_exif(path)) and picture.getexif().get(ORIENTATION) in TURNED:
                return picture.height, picture.width
        return picture.size


def pixel_count(path: Path) -> int:
    """Count the pixels of a picture file, from its header; 0 where there is none to read."""
    try:
        with open_picture(path) as picture:
            return math.prod(picture.size)
    except Exception:  # PIL's parsers raise anything; reading reports it
        return 0


def batches(items: Sequence[T], most: int, pixels: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Yield items in order, in batches that fit into memory.

    Args:
        items: such as files.
        most: items in a batch.
        pixels: of an item.
        limit: pixels in a batch; a larger picture is one of its own.
    """
    batch: list[T] = []
    total = 0
    for item in items:
        count = pixels(item)
        if batch and (len(batch) == most or total + count > limit):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += count
    if batch:
        yield batch


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


def named_as_picture(name: str) -> bool:
    """Tell whether a file's name ends like a picture's and is not hidden."""
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def listed(names: Iterable[str], most: int = 3) -> str:
    """Quote names for a message, the first `most` of them and the number of the others."""
    quoted = [f"'{name}'" for name in names]
    return ", ".join(quoted[:most]) + (f" and {len(quoted) - most} more" if len(quoted) > most else "")


def _problem(path: Path) -> str | None:
    """Tell why a file cannot be read, or return None."""
    try:
        with open_picture(path) as picture:
            ending = _ENDINGS.get(picture.format or "")
            if ending is None or ending not in _tail(path):
                with _turn(picture):
                    picture.load()
    except Exception as error:  # as in read_image
        return _reason(error, path)
    return None


def _tail(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read()


def _reason(error: Exception, path: str | Path) -> str:
    """Put PIL's exception in words of one line without the path, which the message names already."""
    if isinstance(error, Image.UnidentifiedImageError):
        suffix = Path(path).suffix.lower()
        return f"Pillow cannot decode {suffix} here" if suffix in (".avif", ".heic", ".heif") else "not a picture"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _has_exif(path: str | Path) -> bool:
    """Tell whether a PNG file may hold EXIF data: Pillow would decode the whole picture to know."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            if head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


def _turn(picture: Image.Image) -> AbstractContextManager[object]:
    """Wait, before a large picture is decoded, until no other thread decodes one."""
    return _LARGE_AT_ONCE if math.prod(picture.size) > _LARGE else nullcontext()


def _strips(picture: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes of whole rows, of about :data:`_STRIP` pixels, from the top to the bottom."""
    rows = max(1, _STRIP // picture.width)
    for top in range(0, picture.height, rows):
        yield 0, top, picture.width, min(top + rows, picture.height)


def _laid_on(picture: Image.Image, background: str) -> Image.Image:
    picture = picture.convert("RGBA")
    canvas = Image.new("RGBA", picture.size, background)
    return Image.alpha_composite(canvas, picture).convert("RGB")


def _eight_bit(picture: Image.Image) -> Image.Image:
    ranges = [_range(np.asarray(picture.crop(box))) for box in _strips(picture)]
    ends = [each for each in ranges if each is not None]
    if not ends:
        raise DataError("no value is finite")
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if picture.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    grey = Image.new("L", picture.size)
    for box in _strips(picture):
        values = np.asarray(picture.crop(box)).astype(np.float64)
        scaled = (values - low) / max(high - low, np.finfo(np.float64).tiny) * 255
        grey.paste(Image.fromarray(np.rint(np.where(np.isfinite(values), scaled, 0)).astype(np.uint8)), box)
    return grey


def _range(values: np.ndarray) -> tuple[float, float] | None:
    """Return the smallest and the largest finite value; None where there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else None
