"""Frames and boxes as people have them: arrays, pictures, tensors and files, turned into 8-bit RGB arrays.

The order of an array's colours is always said: OpenCV gives BGR, everything else RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from ..errors import UserError, near_miss
from .boxes import Size
from .images import read_image, to_rgb

# (H, W, 3) arrays, also (H, W), (H, W, 1) and (H, W, 4), of 8 or 16 bits or of floats in [0, 1]; (3, H, W) tensors;
# PIL pictures; files.
Frame: TypeAlias = Any

COLORS = ("rgb", "bgr")
FORMATS = {  # what the four numbers are, in pixels
    "xywh": "left,top,width,height in pixels, such as 120,80,40,60",
    "xyxy": "left,top,right,bottom in pixels, such as 120,80,160,140",
    "cxcywh": "middle x,middle y,width,height in pixels, such as 140,110,40,60",
}


def as_frame(frame: Frame, color: str = "rgb") -> np.ndarray:
    """Turn a frame into (H, W, 3) uint8 RGB; alpha is dropped, 16 bits are scaled to 8.

    Args:
        frame: see :data:`Frame`.
        color: order of the channels of an array or tensor, ``rgb`` or ``bgr``.

    Raises:
        UserError: it is none, or `color` is unknown.
        DataError: a file is no readable picture.
    """
    if color not in COLORS:
        raise UserError(f"unknown colour order '{color}'.{near_miss(color, COLORS)} Known: {', '.join(COLORS)}.")
    if isinstance(frame, str | Path):
        return np.asarray(read_image(frame))
    if isinstance(frame, Image.Image):
        return np.asarray(to_rgb(frame))
    array = frame
    if hasattr(frame, "detach"):  # a tensor, known without torch
        array = frame.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or 0 in array.shape:
        what = f"an array of shape {array.shape}" if isinstance(array, np.ndarray) else type(frame).__name__
        raise UserError(f"{what} is no frame: give (height, width, 3) uint8, a picture, a file, or a (3, H, W) tensor.")
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] not in (1, 3, 4):
        raise UserError(f"a frame of shape {array.shape} has {array.shape[2]} channels: give 1, 3 or 4, channels last.")
    array = _eight_bits(array)
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[..., 2::-1] if color == "bgr" else array[..., :3])


def as_box(box: Sequence[float], fmt: str, size: Size) -> np.ndarray:
    """Turn a box into left, top, right, bottom, (4,) float64, cut at the frame's borders.

    Args:
        box: four numbers in pixels.
        fmt: ``xywh`` (left, top, width, height), ``xyxy``, or ``cxcywh`` (middle, width, height).
        size: (width, height) of the frame.

    Raises:
        UserError: it is not four finite numbers, of no size, or outside the frame.
    """
    if fmt not in FORMATS:
        raise UserError(f"unknown box format '{fmt}'.{near_miss(fmt, FORMATS)} Known: {', '.join(FORMATS)}.")
    try:
        given = np.asarray(box, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        given = np.empty(0)
    shown = ",".join(f"{value:g}" for value in given)
    how = f"give it as {FORMATS[fmt]}"
    if given.shape != (4,) or not np.isfinite(given).all():
        raise UserError(f"box '{shown or box}' is not four finite numbers: {how}.")
    first, second = given[:2], given[2:]
    low, high = {
        "xywh": (first, first + second),
        "xyxy": (first, second),
        "cxcywh": (first - second / 2, first + second / 2),
    }[fmt]
    if (high <= low).any():
        raise UserError(f"box {shown} ({fmt}) has no size: {how}.")
    limits = np.array(size, dtype=np.float64)
    inside = np.concatenate([np.clip(low, 0, limits), np.clip(high, 0, limits)])
    sides = inside[2:] - inside[:2]
    if (sides < 1).any():
        what = "lies outside" if (sides <= 0).any() else "covers less than a pixel of"
        raise UserError(f"box {shown} ({fmt}) {what} the frame of {size[0]} x {size[1]} pixels: {how}.")
    return inside


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise UserError("a frame of floats must lie in [0, 1]: divide it by its largest value, or give uint8.")
        return (array * 255 + 0.5).astype(np.uint8)
    raise UserError(f"a frame of {array.dtype} is not understood: give uint8, uint16, or floats in [0, 1].")
