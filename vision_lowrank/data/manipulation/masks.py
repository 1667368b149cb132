"""Reading mask files, in whichever of the usual ways they are stored: where was a picture edited?

====================  ==============================================================================================
black and white       edited where the mean over R, G, B is above half of white (IMDL-BenCo's rule), if any reaches
                      half at all; white is 255, or 65,535 for 16 bits unless the values end at 255
0 and 1               edited where 1; not in JPEG files, whose black has such noise
coloured palette      black and light colours as above; else entry 1 of the entries 0 and 1
transparency          says nothing: it must agree with the colours
====================  ==============================================================================================

What is none of these, such as grey at most 100 or the numbers of several objects, or white where it is transparent, is
refused instead of being read as a picture without edits, or as one that was edited all over.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import DataError
from ..images import decoded, reading

_NOISE = 16  # of JPEG's black
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")


class AmbiguousMask(DataError):
    """A mask that can be read in several ways."""


def read_mask(path: Path, name: str | None = None) -> np.ndarray:
    """Read a mask file, upright, as (H, W) bool: True where edited.

    How a mask that is not black and white was taken is said once, as a warning.

    Args:
        path: the file.
        name: what to call it in messages; default the path.

    Raises:
        AmbiguousMask: it is none of the kinds that the module names.
        DataError: the file is missing or damaged.
    """
    name = name or str(path)
    with reading(path, name, "mask"):
        picture = decoded(path)
        alpha = _transparency(picture)
    edited = _of_palette(picture, name) if picture.mode in ("P", "PA") else _of_levels(*_levels(picture), picture, name)
    if alpha is not None:
        _check_transparency(edited, alpha, name)
    return edited


def _transparency(picture: Image.Image) -> np.ndarray | None:
    """Return where a mask is more transparent than not, (H, W) bool; None where it is opaque all over."""
    deep = picture.mode == "F" or picture.mode.startswith("I")
    if deep or not picture.has_transparency_data:
        return None
    alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
    return alpha < 128 if alpha.min() < 255 else None


def _check_transparency(edited: np.ndarray, transparent: np.ndarray, name: str) -> None:
    if (edited & transparent).any():
        raise _ambiguous(name, "is white where it is transparent")
    if transparent.any() and not transparent.all() and not edited.any():
        raise _ambiguous(name, "is black, and transparent in parts")


def _levels(picture: Image.Image) -> tuple[np.ndarray, float]:
    """Return the values of a mask without palette, (H, W), and what white is."""
    mode = picture.mode
    if mode == "1":
        return np.asarray(picture), 1
    if mode == "F" or mode.startswith("I"):
        values = np.asarray(picture)
        high = values.max(initial=0)
        return values, 1 if mode == "F" and high <= 1 else 255 if high <= 255 else 65535
    if mode in ("L", "LA"):
        return np.asarray(picture.getchannel("L")), 255
    colours = np.asarray(picture.convert("RGB"))
    grey = colours[..., 0]
    if np.array_equal(grey, colours[..., 1]) and np.array_equal(grey, colours[..., 2]):
        return grey, 255
    return colours.sum(axis=-1, dtype=np.uint16), 3 * 255


def _of_levels(values: np.ndarray, white: float, picture: Image.Image, name: str) -> np.ndarray:
    """Tell where values say that a picture was edited, (H, W) bool."""
    high, noisy = values.max(initial=0), picture.format in _LOSSY
    if high >= white // 2:
        if picture.mode.startswith("I") and white == 255:
            _say("are of 16 bits or more and end at 255: taken as white")
        return values > white / 2
    if high == 0 or (noisy and high <= _NOISE * white / 255):
        return np.zeros(values.shape, dtype=bool)
    if white == 255 and not noisy and np.isin(values, (0, 1)).all():
        _say("hold 0 and 1: 1 is taken as edited")
        return values == 1
    limits = f"its highest value is {high:g}; white is {white:g}"
    raise _ambiguous(name, f"is neither black and white nor 0 and 1 ({limits})")


def _of_palette(picture: Image.Image, name: str) -> np.ndarray:
    """Tell where the entries of a palette say that a picture was edited, (H, W) bool."""
    entries = np.asarray(picture.getchannel(0))
    used = np.flatnonzero(np.bincount(entries.ravel(), minlength=256))
    colours = np.zeros((256, 3), dtype=np.uint16)
    stored = np.asarray(picture.getpalette("RGB"), dtype=np.uint16).reshape(-1, 3)
    colours[: len(stored)] = stored
    if (colours[used] == colours[used, :1]).all():
        return _of_levels(colours[:, 0][entries], 255, picture, name)
    sums = colours.sum(axis=-1)
    if ((sums[used] == 0) | (sums[used] > 1.5 * 255)).all():
        return sums[entries] > 1.5 * 255
    if used.max() <= 1:
        _say("have two entries of a coloured palette: entry 1 is taken as edited")
        return entries == 1
    raise _ambiguous(name, f"has {len(used)} entries of a coloured palette, none of which must be white")


def _ambiguous(name: str, why: str) -> AmbiguousMask:
    remedy = "store a grey picture without transparency, 255 where edited and 0 elsewhere"
    return AmbiguousMask(f"mask '{name}' {why}: {remedy}.")


def _say(how: str) -> None:
    """Warn without naming the file, so that Python shows it once."""
    warnings.warn(f"masks, one or more, {how}.", stacklevel=1)
