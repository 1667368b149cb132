"""Crops around a box: where they lie in a frame, what is drawn, and boxes carried there and back.

A crop of W_out x H_out pixels is an axis-parallel map from frame to crop, out = s · p + t, with scales s = (sx, sy) and
shifts t in pixels. Around a box (cx, cy, w, h) with *area factor* f (SiamFC's context, arXiv 1606.09549)::

    a = (w + (f-1) (w+h)/2,  h + (f-1) (w+h)/2)             sides of the region in the frame
    sx = sy = sqrt(W_out H_out / (a_w a_h)),   t = (W_out, H_out)/2 - s (cx, cy)

so a square target fills 1/f of the crop's side. Pixels are drawn rectangle to rectangle: the part of the frame that
shows is widened to whole pixels, its place in the crop rounded to whole pixels, and one bilinear resize fills it. What
is drawn so has slightly other scales and shifts than were asked for: the *effective* ones, by which boxes are mapped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import Size


@dataclass(frozen=True)
class CropMap:
    """A map from frame to crop, out = scale · p + shift.

    Attributes:
        scale: (2,) crop pixels per frame pixel, along x and y.
        shift: (2,) crop pixels.
    """

    scale: np.ndarray
    shift: np.ndarray

    @classmethod
    def around(cls, box: np.ndarray, factor: float, size: Size) -> CropMap:
        """Put a box in the middle of a crop of `size` (width, height) with its context.

        Args:
            box: (4,) left, top, right, bottom in frame pixels, with positive sides.
            factor: area factor f.
            size: of the crop.
        """
        sides, middle = box[2:] - box[:2], (box[:2] + box[2:]) / 2
        region = sides + (factor - 1) * sides.sum() / 2
        scale = np.full(2, np.sqrt(size[0] * size[1] / region.prod()))
        return cls(scale, np.array(size) / 2 - scale * middle)

    def to_crop(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes (…, 4) xyxy from the frame to the crop."""
        return boxes * np.tile(self.scale, 2) + np.tile(self.shift, 2)

    def to_frame(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes (…, 4) xyxy from the crop to the frame."""
        return (boxes - np.tile(self.shift, 2)) / np.tile(self.scale, 2)


def draw_crop(frame: np.ndarray, wanted: CropMap, size: Size, fill: np.ndarray) -> tuple[Tensor, CropMap]:
    """Draw a crop.

    Args:
        frame: (H, W, 3) uint8.
        wanted: the map.
        size: (width, height) of the crop in pixels.
        fill: (3,) in [0, 255], for what lies outside the frame.

    Returns:
        The crop, (3, height, width) float32 in [0, 255], and the effective map; `wanted` where nothing shows.
    """
    crop = torch.as_tensor(fill, dtype=torch.float32).view(3, 1, 1).repeat(1, size[1], size[0])
    limits, out = np.array(frame.shape[1::-1]), np.array(size)
    low = np.floor(np.clip(-wanted.shift / wanted.scale, 0, limits)).astype(int)
    high = np.ceil(np.clip((out - wanted.shift) / wanted.scale, 0, limits)).astype(int)
    first, last = (np.clip(np.rint(wanted.scale * edge + wanted.shift), 0, out).astype(int) for edge in (low, high))
    if (high <= low).any() or (last <= first).any():
        return crop, wanted
    seen = torch.from_numpy(frame[low[1] : high[1], low[0] : high[0]].copy()).permute(2, 0, 1)
    target = (int(last[1] - first[1]), int(last[0] - first[0]))
    drawn = F.interpolate(seen[None].float(), target, mode="bilinear", align_corners=False)[0]
    crop[:, first[1] : last[1], first[0] : last[0]] = drawn
    scale = (last - first) / (high - low)
    return crop, CropMap(scale, first - scale * low)


def channel_means(frame: np.ndarray) -> np.ndarray:
    """Return the mean of each channel (3,) of a frame (H, W, 3) uint8, in [0, 255]."""
    rows, columns, _ = frame.shape
    # Whole numbers, so exact in any order; row by row, as numpy adds three numbers at a time slowly.
    return frame.sum(axis=0, dtype=np.uint32).sum(axis=0, dtype=np.int64) / (rows * columns)


def touched_cells(box: np.ndarray, grid: tuple[int, int], cell: tuple[float, float]) -> tuple[int, int, int, int]:
    """Return the cells that a box touches, as first column, first row, last column + 1, last row + 1.

    Args:
        box: (4,) xyxy in pixels.
        grid: rows and columns.
        cell: width and height of a cell in pixels.
    """
    x0, y0, x1, y1 = box / np.tile(cell, 2)
    rows, columns = grid
    left, top = (int(np.clip(np.floor(edge), 0, most)) for edge, most in ((x0, columns), (y0, rows)))
    right, bottom = (int(np.clip(np.floor(edge + 1 - 1e-4), 0, most)) for edge, most in ((x1, columns), (y1, rows)))
    return left, top, right, bottom


def cell_mask(box: np.ndarray, grid: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
    """Mark the cells (rows, columns) bool that a box touches; arguments are those of :func:`touched_cells`."""
    left, top, right, bottom = touched_cells(box, grid, cell)
    mask = np.zeros(grid, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask
