"""The two crops of a tracker: their sizes and contexts, and pixels as the backbone takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.geometry import CropMap, cell_mask, channel_means, draw_crop
from ...data.transforms import Preprocess
from ...errors import UserError


@dataclass(frozen=True)
class Cropping:
    """Square crops around a target.

    Attributes:
        search: side of the search crop in pixels.
        template: side of the template crop in pixels, at most `search`.
        search_factor: area factor of the search crop: it is that many times as wide as a square target.
        template_factor: area factor of the template crop.
    """

    search: int
    template: int
    search_factor: float
    template_factor: float

    def check(self) -> None:
        """Refuse a template larger than the search crop.

        Raises:
            UserError: it is.
        """
        if self.template > self.search:
            raise UserError(
                f"task.template_size={self.template} is above task.search_size={self.search}: the template shares the "
                "search crop's positions, so give it at most as many pixels."
            )

    def grids(self, patch: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return rows and columns of the search crop and of the template crop.

        Raises:
            UserError: a side is no multiple of the patch, or the template is the larger one.
        """
        self.check()
        for name, side in (("search", self.search), ("template", self.template)):
            if any(side % each for each in patch):
                near = max(1, round(side / patch[0])) * patch[0]
                raise UserError(
                    f"task.{name}_size={side} is no multiple of the patch of {patch[0]} pixels: try {near}."
                )
        return tuple((side // patch[0], side // patch[1]) for side in (self.search, self.template))  # type: ignore[return-value]

    def cut_template(self, frame: np.ndarray, box: np.ndarray, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Cut the template around `box` (4,) xyxy out of a frame (H, W, 3) uint8.

        Returns:
            The crop (3, s, s) in [0, 255] and the mask (rows, columns) bool of the cells that the box touches.
        """
        size = (self.template, self.template)
        crop, drawn = draw_crop(frame, CropMap.around(box, self.template_factor, size), size, channel_means(frame))
        return crop, mask_of(drawn.to_crop(box), self.template, grid)

    def search_map(self, box: np.ndarray) -> CropMap:
        """Return where the search crop around `box` (4,) xyxy lies, before anything is drawn."""
        return CropMap.around(box, self.search_factor, (self.search, self.search))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cropping:
        """Return what :meth:`to_dict` was called on."""
        return cls(**values)


def mask_of(box: np.ndarray, side: int, grid: tuple[int, int]) -> Tensor:
    """Mark the cells of a crop of `side` pixels that a box (4,) xyxy touches: (rows, columns) bool."""
    return torch.from_numpy(cell_mask(box, grid, (side / grid[1], side / grid[0])))


def normalised(crops: Tensor, preprocess: Preprocess) -> Tensor:
    """Turn crops (…, 3, H, W) in [0, 255] into what the backbone's weights expect."""
    mean, std = (crops.new_tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return (crops / 255 - mean) / std
