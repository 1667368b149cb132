"""A picture as the tiles that a backbone takes, and samples of pictures joined to a batch: :mod:`.pictures` says what a
sample holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data.manipulation.framing import Framing, Grid, token_centres, token_targets
from ...data.transforms import Preprocess

Sample = dict[str, Any]


@dataclass(frozen=True)
class Frames:
    """Pictures as a backbone takes them.

    Attributes:
        framing: how tiles are cut.
        grid: rows and columns of tokens on a tile.
        preprocess: mean and standard deviation of the weights.
    """

    framing: Framing
    grid: Grid
    preprocess: Preprocess

    @property
    def most(self) -> int:
        """T: most tiles of a picture."""
        return self.framing.max_tiles + 1 if self.framing.mode == "tile" else 1

    def sample(self, image: Image.Image) -> Sample:
        """Return ``tiles count centres inside size`` of one RGB picture."""
        parts = torch.stack([self._tensor(tile) for tile in self.framing.tiles(image)])
        centres, inside = token_centres(self.framing.rectangles(*image.size), self.grid, *image.size)
        return {
            "tiles": padded(parts, self.most),
            "count": len(parts),
            "centres": padded(torch.from_numpy(centres).float(), self.tokens),
            "inside": padded(torch.from_numpy(inside), self.tokens),
            "size": torch.tensor(image.size),
        }

    @property
    def tokens(self) -> int:
        """N: most tokens of a picture."""
        return self.most * self.grid[0] * self.grid[1]

    def targets(self, mask: np.ndarray) -> Tensor:
        """Compute the edited share of each token's cell (N,), of a mask (H, W)."""
        rectangles = self.framing.rectangles(mask.shape[1], mask.shape[0])
        return padded(torch.from_numpy(token_targets(mask, rectangles, self.grid)), self.tokens)

    def _tensor(self, tile: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.asarray(tile, dtype=np.float32) / 255).permute(2, 0, 1)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.preprocess.mean, self.preprocess.std))
        return (pixels - mean) / std


def stacked(samples: Sequence[Sample]) -> Sample:
    """Stack samples into one, every value with a first dimension for them."""
    return {key: torch.stack([torch.as_tensor(sample[key]) for sample in samples]) for key in samples[0]}


def tiles_of(batch: Sample, counts: Sequence[int]) -> Tensor:
    """Return the tiles (M, 3, S, S) of a batch without those behind a picture's own."""
    return torch.cat([tiles[:count] for tiles, count in zip(batch["tiles"], counts, strict=True)])


def whole_pictures(batch: Sample) -> Tensor:
    """Return the tile (B, 3, S, S) of each picture of a batch that shows all of it: its last one."""
    counts = batch["count"].tolist()
    return torch.stack([tiles[count - 1] for tiles, count in zip(batch["tiles"], counts, strict=True)])


def padded(rows: Tensor, length: int) -> Tensor:
    """Return `rows` (n, …) with zeros behind them, (length, …)."""
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])
