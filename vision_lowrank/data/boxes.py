"""Boxes in one picture, one value for metrics, drawing, files and tasks.

A box is left, top, right, bottom (``xyxy``) in pixels: edges, not pixel numbers, so that a whole picture of W x H is
(0, 0, W, H) and a box's width is right - left. Two other forms are read and written::

    xywh      left, top, width, height in pixels                                             COCO
    cxcywh    middle, width and height as shares of the picture's sides, in [0, 1]           DETR, YOLO

The module stands on the ground floor: metrics and drawing, below the other readers of data, use it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Size: TypeAlias = tuple[int, int]


class Boxes:
    """N boxes; iterating gives the corners of each as four floats. The arrays are read-only.

    Attributes:
        xyxy: (N, 4) float64, left, top, right, bottom in pixels.
        scores: (N,) float64; None where they have none.
        labels: (N,) int64, numbers of classes; None where they have none.
        size: (width, height) of the picture in pixels; None where it is not known.
    """

    def __init__(
        self,
        xyxy: ArrayLike = (),
        scores: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        size: Size | None = None,
    ) -> None:
        """Copy the arrays.

        Raises:
            UserError: shapes are not those of the attributes, or a corner is not finite.
        """
        array = np.array(xyxy, dtype=np.float64)
        array = array.reshape(0, 4) if array.size == 0 else array
        if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
            raise UserError(f"boxes of shape {array.shape}: give finite numbers (n, 4), left, top, right, bottom.")
        self.xyxy, self.size = _fixed(array), size
        self.scores = None if scores is None else _column(scores, np.float64, len(array), "score")
        self.labels = None if labels is None else _column(labels, np.int64, len(array), "label")

    @classmethod
    def from_xywh(cls, xywh: ArrayLike, **facts: Any) -> Boxes:
        """Make boxes from left, top, width, height in pixels (n, 4); `facts` are the other attributes."""
        array = cls(xywh).xyxy
        return cls(np.concatenate([array[:, :2], array[:, :2] + array[:, 2:]], axis=1), **facts)

    @classmethod
    def from_cxcywh(cls, cxcywh: ArrayLike, size: Size, **facts: Any) -> Boxes:
        """Make boxes from middles and sides as shares (n, 4) of a picture of `size` (width, height)."""
        array = cls(cxcywh).xyxy
        middle, half = array[:, :2], array[:, 2:] / 2
        return cls(np.concatenate([middle - half, middle + half], axis=1) * np.tile(size, 2), size=size, **facts)

    @property
    def xywh(self) -> np.ndarray:
        """(N, 4) left, top, width, height in pixels."""
        return np.concatenate([self.xyxy[:, :2], self.xyxy[:, 2:] - self.xyxy[:, :2]], axis=1)

    @property
    def cxcywh(self) -> np.ndarray:
        """(N, 4) middle, width and height as shares of the picture's sides; UserError without its size."""
        middle, sides = (self.xyxy[:, :2] + self.xyxy[:, 2:]) / 2, self.xyxy[:, 2:] - self.xyxy[:, :2]
        return np.concatenate([middle, sides], axis=1) / np.tile(self._sized(), 2)

    @property
    def area(self) -> np.ndarray:
        """(N,) square pixels; 0 where a side is not positive."""
        return np.clip(self.xyxy[:, 2:] - self.xyxy[:, :2], 0, None).prod(axis=-1)

    def __len__(self) -> int:
        return len(self.xyxy)

    def __iter__(self) -> Iterator[tuple[float, float, float, float]]:
        return iter([(x0, y0, x1, y1) for x0, y0, x1, y1 in self.xyxy.tolist()])

    def __getitem__(self, chosen: slice | ArrayLike) -> Boxes:
        """Return the boxes of a slice, a mask (N,) bool, or indices, in that order."""
        index = chosen if isinstance(chosen, slice) else np.atleast_1d(np.asarray(chosen))
        index = index.astype(np.int64) if isinstance(index, np.ndarray) and index.size == 0 else index  # [] is float
        scores, labels = (None if column is None else column[index] for column in (self.scores, self.labels))
        return Boxes(self.xyxy[index], scores, labels, self.size)

    def __repr__(self) -> str:
        return f"Boxes({self.to_rows()}, size={self.size})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Boxes):
            return NotImplemented
        same = all(_equal(getattr(self, name), getattr(other, name)) for name in ("xyxy", "scores", "labels"))
        return same and self.size == other.size

    def join(self, other: Boxes) -> Boxes:
        """Join these with those of `other` in the same picture; UserError where only one has scores or labels."""
        columns = []
        for name in ("scores", "labels"):
            one, two = getattr(self, name), getattr(other, name)
            if (one is None) != (two is None):
                raise UserError(f"boxes with {name} and boxes without cannot be joined: give both some, or none.")
            columns.append(None if one is None else np.concatenate([one, two]))
        return Boxes(np.concatenate([self.xyxy, other.xyxy]), *columns, self.size)

    def clip(self) -> Boxes:
        """Cut at the picture's borders; UserError without its size."""
        return self._moved(np.clip(self.xyxy, 0, np.tile(self._sized(), 2)), self.size)

    def resize(self, size: Size) -> Boxes:
        """Return the boxes in the same picture at another `size` (width, height); UserError without its own."""
        factors = [new / old for new, old in zip(size, self._sized(), strict=True)]
        return self._moved(self.xyxy * np.tile(factors, 2), size)

    def flip(self) -> Boxes:
        """Return the boxes in the picture mirrored left to right; UserError without its size."""
        x0, y0, x1, y1 = self.xyxy.T
        width = self._sized()[0]
        return self._moved(np.stack([width - x1, y0, width - x0, y1], axis=1), self.size)

    def turn(self) -> Boxes:
        """Turn the boxes left by a quarter with the picture, (x, y) to (y, width - x); UserError without its size."""
        x0, y0, x1, y1 = self.xyxy.T
        width, height = self._sized()
        return self._moved(np.stack([y0, width - x1, y1, width - x0], axis=1), (height, width))

    def iou(self, other: Boxes) -> np.ndarray:
        """Compute the intersection over union of every pair, (N, M)."""
        return pairwise_iou(self.xyxy, other.xyxy)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return plain values for JSON: ``xyxy`` to 0.01 pixel, ``score`` to six digits and ``label`` if there are."""
        rows: list[dict[str, Any]] = [{"xyxy": [round(edge, 2) for edge in box]} for box in self]
        for index, row in enumerate(rows):
            if self.scores is not None:
                row["score"] = round(float(self.scores[index]), 6)
            if self.labels is not None:
                row["label"] = int(self.labels[index])
        return rows

    def to_tensor(self) -> Tensor:
        """Return ``xyxy`` as a float32 tensor (N, 4) of its own."""
        import torch  # here, as readers of data do without

        return torch.tensor(self.xyxy, dtype=torch.float32)

    def _sized(self) -> Size:
        if self.size is None:
            raise UserError("these boxes do not know the size of their picture: give Boxes(…, size=(width, height)).")
        return self.size

    def _moved(self, xyxy: np.ndarray, size: Size | None) -> Boxes:
        """Return the same boxes at other places."""
        return Boxes(xyxy, self.scores, self.labels, size)


def pairwise_iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Compute the IoU of every pair of boxes, (P, 4) and (G, 4) xyxy float64 -> (P, G); 0 for boxes without area."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=-1) for boxes in (one, other)]
    either = areas[0][:, None] + areas[1][None] - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def _column(values: ArrayLike, kind: type, count: int, what: str) -> np.ndarray:
    column = np.array(values, dtype=kind).reshape(-1)
    if len(column) != count:
        raise UserError(f"{count} boxes with {len(column)} {what}s: give one {what} per box.")
    return _fixed(column)


def _fixed(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)
