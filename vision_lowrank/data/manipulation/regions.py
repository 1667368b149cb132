"""Masks to boxes and boxes to masks.

Boxes of a mask: the extents of its connected components (neighbours share a side or a corner) of at least 16 pixels and
at least 0.01 % of the picture. Mask of boxes: every pixel whose centre lies in a box. Either is marked as derived.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from scipy import ndimage

from .base import Box, PictureRecord, Region

MIN_PIXELS, MIN_SHARE = 16, 1e-4


def boxes_of_mask(mask: np.ndarray) -> tuple[Box, ...]:
    """Find the boxes of a mask (H, W) bool, from top to bottom; pixel edges, so a full mask gives (0, 0, W, H)."""
    numbers, count = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    least = max(MIN_PIXELS, MIN_SHARE * mask.size)
    return tuple(
        (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        for (rows, columns), area in zip(ndimage.find_objects(numbers), areas, strict=True)
        if area >= least
    )


def mask_of_boxes(boxes: Iterable[Box], width: int, height: int) -> np.ndarray:
    """Mark the pixels whose centres lie in any of the boxes: (height, width) bool."""
    mask = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        left, top, right, bottom = (max(0, int(np.ceil(value - 0.5))) for value in (x0, y0, x1, y1))
        mask[top:bottom, left:right] = True
    return mask


def with_boxes(record: PictureRecord, mask: np.ndarray) -> PictureRecord:
    """Add the boxes of its mask to `record`, marked as derived, unless boxes are annotated or all is edited."""
    if record.boxes is not None or record.scope == "global":
        return record
    return replace(record, boxes=tuple(Region(box) for box in boxes_of_mask(mask)), derived=True)
