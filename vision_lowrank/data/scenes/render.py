"""How a frame is made: objects warped onto the background from back to front, with motion blur, light and noise.

A point (u, v) of an object, in shares of its size about its middle, is bent, turned by yaw and pitch about axes in the
picture, seen in perspective from 2.5 times its size away, rolled, scaled and moved. Each object is drawn over its own
box only, through a grid of quadrilaterals between which the map is bilinear.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from .motion import Poses
from .textures import PADDING, Texture

DISTANCE = 2.5  # of the eye, in sizes of the object
CELL, MOST_CELLS = 40, 4
SOLID = 128  # alpha from which a pixel belongs to an object
BLURS = 7  # samples of a motion blur at most
MARGIN = 8  # pixels of background around the frame, for its motion blur


@dataclass(frozen=True)
class Layer:
    """An object as it is in one frame.

    Attributes:
        left: of the patch in the frame, in pixels; may be outside.
        top: likewise.
        patch: (h, w, 4) uint8, colour multiplied by alpha, and alpha.
    """

    left: int
    top: int
    patch: np.ndarray

    @property
    def solid(self) -> np.ndarray:
        """(h, w) bool, the pixels that belong to the object."""
        return self.patch[..., 3] >= SOLID

    def inside(self, size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return rows and columns of the frame that the patch covers, and those of the patch that are in the frame."""
        frame, own = [], []
        for start, extent, side in zip((self.top, self.left), self.patch.shape[:2], size[::-1], strict=True):
            low, high = min(max(start, 0), side), max(min(start + extent, side), 0)
            high = max(low, high)
            frame.append(slice(low, high))
            own.append(slice(low - start, high - start))
        return (frame[0], frame[1]), (own[0], own[1])


def draw_layer(texture: Texture, place: np.ndarray, poses: Poses, index: int) -> Layer:
    """Draw an object.

    Args:
        texture: what it looks like.
        place: (2,), its middle in pixels of the frame.
        poses: its poses.
        index: the frame.
    """
    size = float(poses.size[index])
    extent = np.array(texture.extent) / np.sqrt(float(np.prod(texture.extent)))
    forward = _homography(size, place, poses.angles[index])
    reach = extent / 2 + poses.bend
    corners = _project(forward, reach * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]))
    left, top = (int(edge) for edge in np.floor(corners.min(axis=0)) - 1)
    right, bottom = (int(edge) for edge in np.ceil(corners.max(axis=0)) + 1)
    xs, ys = _steps(right - left), _steps(bottom - top)
    grid = np.stack(np.meshgrid(xs + left, ys + top), axis=-1).astype(np.float64)
    points = _project(np.linalg.inv(forward), grid)
    wave = poses.bend * np.sin(poses.waves[:, 0] * points[..., ::-1] + poses.waves[:, 1] * index + poses.waves[:, 2])
    picture, per_pixel = texture.level(size / np.sqrt(float(np.prod(texture.extent))))
    source = ((points + wave) / extent + 0.5) * texture.extent + PADDING
    patch = picture.transform(
        (right - left, bottom - top), Image.Transform.MESH, _mesh(xs, ys, source * per_pixel), Image.Resampling.BILINEAR
    )
    return Layer(left, top, np.asarray(patch))


def draw_background(photograph: Image.Image, view: np.ndarray, world: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw what the camera sees of the background, with `MARGIN` pixels more on every side.

    Args:
        photograph: RGB.
        view: (2, 3), the map from pixels about the frame's middle to the plane.
        world: (3,), pixels of the photograph per pixel of the plane, and where the plane's (0, 0) is in it.
        size: (width, height) of the frame.

    Returns:
        (height + 2 MARGIN, width + 2 MARGIN, 3) uint8.
    """
    extent = (size[0] + 2 * MARGIN, size[1] + 2 * MARGIN)
    linear = view[:, :2] * world[0]
    shift = view[:, 2] * world[0] + world[1:] - linear @ (np.array(extent) / 2)
    if linear[0, 1] == 0:  # without roll, resizing is twice as fast
        low, high = shift, shift + linear @ np.array(extent)
        box = (max(low[0], 0), max(low[1], 0), min(high[0], photograph.width), min(high[1], photograph.height))
        return np.asarray(photograph.resize(extent, Image.Resampling.BILINEAR, box=box))
    coefficients = (*linear[0], shift[0], *linear[1], shift[1])
    return np.asarray(photograph.transform(extent, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR))


def lay(frame: np.ndarray, layer: Layer, motion: np.ndarray) -> None:
    """Lay an object on a frame in place, blurred along `motion` (2,) in pixels."""
    layer = _blurred(layer, motion)
    height, width = frame.shape[:2]
    there, own = layer.inside((width, height))
    patch = layer.patch[own]
    if patch.size:
        under = np.multiply(frame[there], 255 - patch[..., 3:], dtype=np.uint16)
        under += 128
        under += under >> 8  # with the shift below: the division by 255, rounded
        frame[there] = patch[..., :3] + (under >> 8).astype(np.uint8)


def blurred_background(wide: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Blur a background drawn with its margin along `motion` (2,) in pixels, and cut the margin off."""
    shifts = _shifts(np.clip(motion, -2 * MARGIN, 2 * MARGIN))
    height, width = (side - 2 * MARGIN for side in wide.shape[:2])
    pieces = [wide[MARGIN + y : MARGIN + y + height, MARGIN + x : MARGIN + x + width] for x, y in shifts]
    return pieces[0].copy() if len(pieces) == 1 else _mean(pieces)


def finish(frame: np.ndarray, light: np.ndarray, defocus: float, noise: int, corner: tuple[int, int]) -> np.ndarray:
    """Let a lens and a sensor see a frame.

    Args:
        frame: (H, W, 3) uint8.
        light: (3,) gain of each colour, then (1,) gamma.
        defocus: radius of the blur in pixels.
        noise: standard deviation in grey levels.
        corner: which part of the noise; below 64.
    """
    picture = Image.fromarray(frame)
    if defocus >= 0.3:
        picture = picture.filter(ImageFilter.BoxBlur(defocus))
    levels = 255 * light[:3, None] * np.linspace(0, 1, 256) ** light[3]
    seen = np.asarray(picture.point(np.clip(levels + 0.5, 0, 255).astype(int).ravel().tolist()))
    if not noise:
        return seen
    x, y = corner
    grain = _noise(frame.shape[:2], noise)[y : y + frame.shape[0], x : x + frame.shape[1]]
    return np.clip(seen + grain, 0, 255).astype(np.uint8)


@lru_cache(maxsize=8)
def _noise(shape: tuple[int, int], deviation: int) -> np.ndarray:
    grain = np.random.default_rng(deviation).normal(0, deviation, (shape[0] + 64, shape[1] + 64, 3))
    return np.rint(grain).astype(np.int16)


def _homography(size: float, place: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Compute the map (3, 3) from an object's own coordinates to the frame."""
    (cr, cy, cp), (sr, sy, sp) = np.cos(angles), np.sin(angles)
    tilted = np.array([[cy, sy * sp, 0], [0, cp, 0], [-sy / DISTANCE, cy * sp / DISTANCE, 1]])
    placed = np.array([[size * cr, -size * sr, place[0]], [size * sr, size * cr, place[1]], [0, 0, 1]])
    return placed @ tilted


def _project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a homography to points (..., 2)."""
    mapped = points @ matrix[:, :2].T + matrix[:, 2]
    return mapped[..., :2] / mapped[..., 2:]


def _steps(extent: int) -> np.ndarray:
    """Divide pixels into cells: whole-numbered edges from 0 to `extent`."""
    cells = min(max(-(-extent // CELL), 1), MOST_CELLS)
    return np.arange(cells + 1) * extent // cells


def _mesh(xs: np.ndarray, ys: np.ndarray, source: np.ndarray) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """List Pillow's (box, quadrilateral), the corners from the top left against the clock."""
    corners = np.concatenate([source[:-1, :-1], source[1:, :-1], source[1:, 1:], source[:-1, 1:]], axis=-1).tolist()
    columns, rows = xs.tolist(), ys.tolist()
    return [
        ((columns[x], rows[y], columns[x + 1], rows[y + 1]), tuple(corners[y][x]))
        for y in range(len(rows) - 1)
        for x in range(len(columns) - 1)
    ]


def _shifts(motion: np.ndarray) -> list[tuple[int, int]]:
    """List whole-numbered shifts (x, y) along a motion, about its middle, without repetition."""
    count = int(np.clip(np.ceil(np.abs(motion).max()), 1, BLURS))
    along = (np.arange(count) - (count - 1) / 2) / count
    return list(dict.fromkeys((round(x), round(y)) for x, y in (along[:, None] * motion).tolist()))


def _blurred(layer: Layer, motion: np.ndarray) -> Layer:
    shifts = _shifts(motion)
    if len(shifts) == 1:
        return layer
    reach_x, reach_y = (max(abs(shift[axis]) for shift in shifts) for axis in (0, 1))
    wide = np.pad(layer.patch, ((2 * reach_y, 2 * reach_y), (2 * reach_x, 2 * reach_x), (0, 0)))
    height, width = layer.patch.shape[0] + 2 * reach_y, layer.patch.shape[1] + 2 * reach_x
    pieces = [wide[reach_y + y : reach_y + y + height, reach_x + x : reach_x + x + width] for x, y in shifts]
    return Layer(layer.left - reach_x, layer.top - reach_y, _mean(pieces))


def _mean(pieces: list[np.ndarray]) -> np.ndarray:
    total = pieces[0].astype(np.uint16)
    for piece in pieces[1:]:
        total += piece
    return (total // len(pieces)).astype(np.uint8)
