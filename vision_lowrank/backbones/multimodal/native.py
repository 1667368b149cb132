"""Places of image tokens where the library's processor did the tiling.

Every family marks image tokens by one id; what it does around them says where each is:

* Qwen: one grid (h, w) of patches per picture in ``image_grid_thw``, merged to (h / m, w / m);
* InternVL: tiles of g x g in rows, the whole picture last;
* SmolVLM: runs of g x g, one per part of the picture, the whole picture last;
* LLaVA-OneVision: the whole picture on g x g, then all tiles together on one grid, cut to the picture's proportions,
  with a newline behind every row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from .families import Family


def native_places(config: Any, family: Family, grid: tuple[int, int], inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Return (n, 3) tile, row and column of the n image tokens of every picture, one per row of ``input_ids``.

    Args:
        config: the library's config of the model.
        family: the model's.
        grid: rows and columns of the tokens of a tile.
        inputs: what the library's processor gave.

    Raises:
        UserError: the tokens do not fit the sizes that the inputs name.
    """
    counts = (inputs["input_ids"] == config.image_token_id).sum(1).tolist()
    rows, columns = grid
    places = []
    for number, count in enumerate(counts):
        if "image_grid_thw" in inputs:
            merge = family.merge(config)
            _, height, width = inputs["image_grid_thw"][number].tolist()
            found = _grid(0, height // merge, width // merge)
        elif "image_sizes" in inputs and count > rows * columns + 1:
            shape = _unpadded(inputs["image_sizes"][number].tolist(), config, rows)
            found = torch.cat([_grid(0, rows, columns), _grid(1, *shape, newline=True)])
        else:
            found = torch.cat([_grid(tile, rows, columns) for tile in range(count // (rows * columns))])
        if len(found) != count:
            raise UserError(f"picture {number} has {count} image tokens where its size gives {len(found)}.")
        places.append(found)
    return places


def _grid(tile: int, rows: int, columns: int, newline: bool = False) -> Tensor:
    """Return (rows · columns, 3) places of one tile in rows, (tile, -1, -1) behind every row where it has a newline."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns + newline), indexing="ij")
    places = torch.stack([torch.full_like(row, tile), row, column], dim=-1).flatten(0, 1)
    places[places[:, 2] == columns, 1:] = -1
    return places


def _unpadded(size: list[int], config: Any, g: int) -> tuple[int, int]:
    """Compute rows and columns of LLaVA-OneVision's grid of all tiles, for a picture of `size` (height, width).

    The library lays the picture on the best of its grids, cuts off the padding on both sides of one axis, and shrinks
    what is more than k tiles, k as in ``anyres_max_k``.
    """
    from transformers.image_processing_utils import select_best_resolution

    height, width = size
    best = select_best_resolution(size, config.image_grid_pinpoints)
    rows, columns = (side // config.vision_config.image_size * g for side in best)
    if width * rows > columns * height:
        rows -= (rows - int(round(height * columns / width, 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * rows / height, 7))) // 2 * 2
    limit = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (limit * g * g))
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)
