"""How a picture of any size is seen through square tiles, and how what was found in them maps back to its pixels.

A tile shows a rectangle (x0, y0, x1, y1) of the picture, in its pixels as floats, on (size, size) model pixels
(bicubic, antialiased):

    resize   the whole picture; its aspect is not kept
    pad      a square of the long side from the top left corner; right of or below the picture is :data:`PADDING`
    tile     a grid of equal tiles over the picture, then the whole picture as the last tile where there are several

Of all grids of at most `max_tiles` tiles, ``tile`` takes the one whose tiles have the shortest long side, so that
traces shrink least; of equals, and where no side shrinks by more than :data:`SHRINK`, the one of fewest tiles.

A backbone has one token per cell of a (gh, gw) grid on each tile, N = T gh gw in all, tile by tile and row by row. A
cell is where a token is in the picture, so these functions need rectangles and grid alone and know no modes. Where a
cell reaches beyond the picture, its *visible part* counts; a cell without one is padding.

``pad`` keeps the whole picture; IMDL-BenCo's ``padding`` (arXiv 2406.10580) does not scale and crops beyond its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import ceil
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from ...errors import ArtefactError, UserError, near_miss
from ..images import LONGEST

Mode: TypeAlias = Literal["resize", "pad", "tile"]
Grid: TypeAlias = tuple[int, int]

# The mean colour of photographs (ImageNet's): close to 0 once a backbone has normalised it.
PADDING = (124, 116, 104)
SHRINK = 1.25


@dataclass(frozen=True)
class Framing:
    """How pictures are put before a model; a part of what the model is.

    Attributes:
        mode: ``resize``, ``pad`` or ``tile``.
        size: side of a tile in model pixels.
        max_tiles: most tiles of the grid of ``tile``, the whole picture not counted.

    Raises:
        UserError: a value is impossible.
    """

    mode: Mode
    size: int
    max_tiles: int = 6

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            hint = near_miss(self.mode, get_args(Mode))
            raise UserError(f"unknown framing '{self.mode}'.{hint} Known: {', '.join(get_args(Mode))}.")
        if self.size < 1 or self.max_tiles < 1:
            raise UserError(f"framing needs size >= 1 and max_tiles >= 1, not {self.size} and {self.max_tiles}.")

    def rectangles(self, width: int, height: int) -> np.ndarray:
        """Compute what each tile covers of a picture of `width` x `height` pixels, (T, 4) float64: x0, y0, x1, y1."""
        whole = [0.0, 0.0, width, height]
        if self.mode == "resize":
            return np.array([whole], dtype=np.float64)
        if self.mode == "pad":
            side = max(width, height)
            return np.array([[0.0, 0.0, side, side]], dtype=np.float64)
        columns, rows = self._columns_and_rows(width, height)
        x, y = np.linspace(0, width, columns + 1), np.linspace(0, height, rows + 1)
        tiles = [[x[i], y[j], x[i + 1], y[j + 1]] for j in range(rows) for i in range(columns)]
        return np.array([*tiles, whole] if len(tiles) > 1 else tiles, dtype=np.float64)

    def tiles(self, image: Image.Image) -> list[Image.Image]:
        """Cut an RGB picture into its tiles, each (size, size), in the order of :meth:`rectangles`."""
        return [_seen(image, rectangle, self.size) for rectangle in self.rectangles(*image.size)]

    def check(self, asked: Framing) -> None:
        """Refuse to use a model trained with this framing with another one.

        Raises:
            ArtefactError: `asked` differs.
        """
        if asked != self:
            raise ArtefactError(
                f"the checkpoint was trained with framing {self}, but {asked} was asked for, which changes its "
                "scores: use its own, or set task.override_framing=true."
            )

    def __str__(self) -> str:
        most = f" of at most {self.max_tiles} tiles" if self.mode == "tile" else ""
        return f"'{self.mode}' at {self.size} pixels{most}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Framing:
        """Build the framing from its dictionary, the inverse of :meth:`to_dict`.

        Raises:
            UserError: a key is unknown, or `mode` or `size` is missing.
        """
        known = [each.name for each in fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"unknown framing key '{key}'.{near_miss(key, known)} Known: {', '.join(known)}.")
        for key in ("mode", "size"):
            if key not in values:
                raise UserError(f"framing lacks '{key}': give the value that the model was trained with.")
        return cls(**values)

    def _columns_and_rows(self, width: int, height: int) -> tuple[int, int]:
        most = self.max_tiles
        grids = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
        enough = SHRINK * self.size
        return min(grids, key=lambda grid: (max(width / grid[0], height / grid[1], enough), grid[0] * grid[1]))


def token_centres(rectangles: np.ndarray, grid: Grid, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute where each token is in a picture of `width` x `height` pixels.

    Returns:
        centres: (N, 2) float64, x and y of the middle of the visible part of a token's cell, in [0, 1] of the picture;
            of a cell of padding its own middle, beyond 1.
        inside: (N,) bool, False for padding.
    """
    x, y = _edges(rectangles[:, 0::2], grid[1]), _edges(rectangles[:, 1::2], grid[0])
    (across, x_inside), (down, y_inside) = _middles(x, width), _middles(y, height)
    centres = np.stack(np.broadcast_arrays(across[:, None, :], down[:, :, None]), axis=-1)
    return centres.reshape(-1, 2), (y_inside[:, :, None] & x_inside[:, None, :]).ravel()


def token_targets(mask: np.ndarray, rectangles: np.ndarray, grid: Grid) -> np.ndarray:
    """Compute what share of the visible part of each token's cell was edited, exactly: edges may lie inside a pixel.

    The integral of a picture of constant pixels is bilinear between the corners of its pixels, so that the sum over a
    rectangle is four look-ups in the table of sums (summed-area table), interpolated.

    Args:
        mask: (H, W) bool, True where edited.
        rectangles: (T, 4), of the picture that the mask belongs to.
        grid: (gh, gw).

    Returns:
        (N,) float32 in [0, 1]; 0 for padding.
    """
    height, width = mask.shape
    table = np.zeros((height + 1, width + 1), dtype=np.int32)
    np.cumsum(np.cumsum(mask, axis=0, dtype=np.int32), axis=1, out=table[1:, 1:])
    targets = []
    for x0, y0, x1, y1 in rectangles:
        x = np.linspace(x0, x1, grid[1] + 1).clip(0, width)
        y = np.linspace(y0, y1, grid[0] + 1).clip(0, height)
        sums = _between(_between(table, y).T, x).T
        area = np.outer(np.diff(y), np.diff(x))
        edited = np.diff(np.diff(sums, axis=0), axis=1)
        targets.append(np.divide(edited, area, out=np.zeros_like(area), where=area > 0).ravel())
    return np.concatenate(targets).clip(0, 1).astype(np.float32)


def heat_map(values: np.ndarray, rectangles: np.ndarray, grid: Grid, width: int, height: int) -> np.ndarray:
    """Spread values of tokens over a map of the picture's pixels, bilinear.

    heat(p) = Σ_n w_n(p) v_n / Σ_n w_n(p), where w_n falls linearly in x and in y from 1 at the middle of cell n to 0
    one cell away. Within a tile this is bilinear interpolation, constant at the picture's rim, and it goes on over the
    seams of tiles. Where tiles overlap, as the grid and the whole picture do, it is about their mean. Padding has no
    weight.

    Args:
        values: (N,) one per token.
        rectangles: (T, 4).
        grid: (gh, gw).
        width: of the picture in pixels.
        height: likewise.

    Returns:
        (height, width) float32, within the range of `values`.
    """
    total = np.zeros((height, width), dtype=np.float32)
    weight = np.zeros((height, width), dtype=np.float32)
    tiles = np.asarray(values, dtype=np.float32).reshape(len(rectangles), *grid)
    for (x0, y0, x1, y1), tile in zip(rectangles, tiles, strict=True):
        columns, across = _hats(x0, x1, grid[1], width)
        rows, down = _hats(y0, y1, grid[0], height)
        total[rows, columns] += down.T @ tile @ across
        weight[rows, columns] += np.outer(down.sum(axis=0), across.sum(axis=0))
    return np.clip(total / weight, tiles.min(), tiles.max())  # a mean, but for rounding


def _seen(image: Image.Image, rectangle: np.ndarray, size: int) -> Image.Image:
    """Draw what a tile shows. Only as much padding as the filter reaches is made: a panorama's canvas could be huge."""
    left, top = float(rectangle[0]), float(rectangle[1])
    x_scale, y_scale = ((rectangle[2:] - rectangle[:2]) / size).tolist()
    columns = min(size, ceil((image.width - left) / x_scale))
    rows = min(size, ceil((image.height - top) / y_scale))
    right, bottom = left + columns * x_scale, top + rows * y_scale
    if image.height > LONGEST:
        box = (0, top, image.width, min(bottom, image.height))
        image, top, bottom, y_scale = image.resize((image.width, rows), Image.Resampling.BICUBIC, box=box), 0, rows, 1
    if image.width > LONGEST:
        box = (left, 0, min(right, image.width), image.height)
        image = image.resize((columns, image.height), Image.Resampling.BICUBIC, box=box)
        left, right, x_scale = 0, columns, 1
    # Bicubic reaches two pixels of the picture or of the tile, whichever are larger.
    reach = [
        ceil(end + 2 * max(scale, 1)) if end > length + 1e-6 else length
        for end, scale, length in ((right, x_scale, image.width), (bottom, y_scale, image.height))
    ]
    if reach != [*image.size]:
        padded = Image.new("RGB", (reach[0], reach[1]), PADDING)
        padded.paste(image)
        image = padded
    box = (left, top, min(right, image.width), min(bottom, image.height))
    part = image.resize((columns, rows), Image.Resampling.BICUBIC, box=box)
    if part.size == (size, size):
        return part
    tile = Image.new("RGB", (size, size), PADDING)
    tile.paste(part)
    return tile


def _edges(spans: np.ndarray, cells: int) -> np.ndarray:
    """Compute (T, cells + 1) edges of the cells along one axis of rectangles that span (T, 2)."""
    return np.linspace(spans[:, 0], spans[:, 1], cells + 1, axis=1)


def _middles(edges: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute middles of cells (T, cells) in [0, 1] of `length`, and whether any of the picture is in them."""
    low, high = edges[:, :-1], edges[:, 1:]
    inside = (low < length) & (high > 0)
    visible = (low.clip(0, length) + high.clip(0, length)) / 2
    return np.where(inside, visible, (low + high) / 2) / length, inside


def _between(table: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolate rows of `table` (rows, columns) linearly at fractional places (n,): (n, columns) float64."""
    below = np.minimum(at.astype(np.int64), len(table) - 2)
    share = (at - below)[:, None]
    return table[below] * (1 - share) + table[below + 1] * share


def _hats(start: float, stop: float, cells: int, length: int) -> tuple[slice, np.ndarray]:
    """Weight cells along one axis: the pixels that they reach, and (cells, pixels) float32; padding has none."""
    cell = (stop - start) / cells
    low = start + cell * np.arange(cells)
    first, last = max(0, int(start - cell)), min(length, ceil(stop + cell))
    pixels = np.arange(first, last) + 0.5
    weights = np.maximum(0, 1 - np.abs(pixels - (low + cell / 2)[:, None]) / cell)
    weights[low >= length] = 0
    return slice(first, last), weights.astype(np.float32)
