"""Pairs of views of one scene with the places that match: what a base for tracking is pretrained on.

A scene is a stack of layers, a photograph below and perhaps objects above it (emoji, or blobs cut out of other
photographs). Each of its two views (side s pixels) draws every layer under a map of its own, from view to layer::

    background    source = c + (side / s) R(angle) A (q - s/2)        q: place in the view; A: aspect and shear
    object        likewise, about a place of its own: it moves against the background

then changes light, colour, sharpness and noise. For the centre q of a cell of the first view, the *place* is where the
same point of its topmost layer lies in the second view: its own map, then the other's inverse. It is NaN where that is
outside, or covered by another layer.

Everything is a function of (seed, number, photograph) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from pydantic import Field

from ..config.marks import Folder
from ..config.schema import Section
from ..registry import register
from .emoji import STYLES, Style, emoji_rgba
from .scenes.pools import Pool, pools

Affine = np.ndarray  # (2, 3): target (x, y) = A [x, y, 1]

OPAQUE = 128
SMALLEST, LARGEST = 0.2, 0.6  # side of an object as a share of the view's


class RegionsConfig(Section):
    """Options of ``data: {type: regions}``."""

    type: Literal["regions"] = "regions"
    photographs: tuple[Folder, ...] = Field((), description="folders, searched in depth; none = scikit-image's")
    styles: tuple[Style, ...] = Field(STYLES, min_length=1, description="drawing styles of the objects")
    objects: int = Field(2, ge=0, le=8, description="most objects over a photograph")
    strength: float = Field(1.0, ge=0, le=4, description="of the change of light, colour, sharpness and noise")
    test_pairs: int = Field(512, ge=1, le=10**6, description="pairs of the validation set and of the test set each")


@dataclass(frozen=True)
class Layer:
    """A picture with where it lies in both views.

    Attributes:
        picture: RGBA.
        maps: of each view, from places in the view to places in the picture.
    """

    picture: Image.Image
    maps: tuple[Affine, Affine]


@dataclass(frozen=True)
class RegionPair:
    """Two views of one scene.

    Attributes:
        views: (2, s, s, 3) uint8 RGB.
        places: (h, w, 2) float64, for every cell of the first view, where its centre lies in the second, x and y in
            pixels; NaN where it cannot be seen there.
    """

    views: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class RegionPairs:
    """Pairs of a split: a pair is a function of its seed, number and photograph.

    Attributes:
        pool: photographs to look at, and to cut objects out of; emoji to draw as objects.
        styles: drawing styles of the emoji.
        objects: most objects over a photograph.
        strength: of the change of light and colour.
        length: how many pairs are listed; training draws further ones by their number.
    """

    pool: Pool
    styles: tuple[str, ...]
    objects: int
    strength: float
    length: int

    def __len__(self) -> int:
        return self.length

    def pair(self, seed: int, number: int, photo: int, side: int, cell: int) -> RegionPair:
        """Draw pair `number` over photograph `photo`, with views of `side` pixels and places of cells of `cell` pixels.

        Raises:
            DataError: a photograph is damaged.
        """
        rng = np.random.default_rng((seed, number))
        layers = self._scene(rng, photo, side)
        seen = [_drawn(layers, view, side) for view in (0, 1)]
        views = np.stack([developed(picture, rng, self.strength) for picture, _ in seen])
        return RegionPair(views, _places(layers, seen[0][1], seen[1][1], side, cell))

    def _scene(self, rng: np.random.Generator, photo: int, side: int) -> list[Layer]:
        picture = self.pool.photograph(photo % len(self.pool.photographs))
        layers = [Layer(picture.convert("RGBA"), _background_maps(rng, picture.size, side))]
        for _ in range(int(rng.integers(self.objects + 1))):
            picture = self._object(rng)
            layers.append(Layer(picture, _object_maps(rng, picture.size, side)))
        return layers

    def _object(self, rng: np.random.Generator) -> Image.Image:
        if rng.random() < 0.5:
            style, row = (each[int(rng.integers(len(each)))] for each in (self.styles, self.pool.emoji))
            picture = emoji_rgba(style, row.code)
            return picture.crop(picture.getchannel("A").getbbox())
        return cut_blob(self.pool.photograph(int(rng.integers(len(self.pool.photographs)))), rng)


@register("data", "regions", summary="views of photographs and of objects over them, with the places that match",
          config=RegionsConfig, gives="regions")  # fmt: skip
def regions(config: RegionsConfig) -> dict[str, RegionPairs]:
    """Return the pairs of ``train``, ``val`` and ``test``: no photograph and no emoji is in two of them.

    Raises:
        DataError: a folder is missing or holds no picture, or the shipped emoji are missing.
    """
    divided = pools(config.photographs or None)
    return {
        split: RegionPairs(
            pool,
            config.styles,
            config.objects,
            config.strength,
            len(pool.photographs) if split == "train" else config.test_pairs,
        )
        for split, pool in divided.items()
    }


def cut_blob(photo: Image.Image, rng: np.random.Generator, most: int = 96) -> Image.Image:
    """Cut a smooth random shape out of a photograph: RGBA, sides at most `most` pixels, with a soft edge."""
    width, height = (max(16, min(most, round(each * rng.uniform(0.2, 0.6)))) for each in photo.size)
    left, top = (
        int(rng.integers(max(1, whole - part))) for whole, part in zip(photo.size, (width, height), strict=True)
    )
    picture = photo.crop((left, top, left + width, top + height)).convert("RGBA")
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = 0.42 * np.ones_like(angles)
    for order in range(2, 6):
        radius += 0.16 / order * rng.normal() * np.cos(order * angles + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.18, 0.48)
    outline = np.stack([width * (0.5 + radius * np.cos(angles)), height * (0.5 + radius * np.sin(angles))], axis=1)
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).polygon([tuple(point) for point in outline.tolist()], fill=255)
    picture.putalpha(mask.filter(ImageFilter.GaussianBlur(0.7)))
    return picture


# --- maps ------------------------------------------------------------------------------------------------------------


def draw_linear(rng: np.random.Generator, scale: float, turn: float) -> np.ndarray:
    """Draw a (2, 2) map that scales by `scale`, turns by N(0, `turn`) radians, stretches and shears a little."""
    angle, aspect, shear = turn * rng.normal(), np.exp(0.12 * rng.normal()), 0.12 * rng.normal()
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * rotation @ np.array([[aspect, shear], [0, 1 / aspect]])


def about(linear: np.ndarray, source: np.ndarray, place: np.ndarray) -> Affine:
    """Return the map q -> source + linear (q - place)."""
    return np.concatenate([linear, (source - linear @ place)[:, None]], axis=1)


def _background_maps(rng: np.random.Generator, size: Sequence[int], side: int) -> tuple[Affine, Affine]:
    """Look at two regions of a photograph that overlap, each inside it as far as it fits."""
    extent = np.array(size, dtype=float)
    first = min(size) * np.exp(rng.uniform(np.log(0.3), np.log(0.9)))
    regions = (first, float(np.clip(first * np.exp(0.3 * rng.normal()), 0.25 * min(size), min(size))))
    middle = rng.uniform(first / 2, np.maximum(extent - first / 2, first / 2 + 1))
    second = middle + rng.uniform(-0.35, 0.35, 2) * first
    maps = []
    for region, centre in zip(regions, (middle, second), strict=True):
        inside = np.clip(centre, region / 2, np.maximum(extent - region / 2, region / 2))
        maps.append(about(draw_linear(rng, region / side, 0.25), inside, np.full(2, side / 2)))
    return maps[0], maps[1]


def _object_maps(rng: np.random.Generator, size: Sequence[int], side: int) -> tuple[Affine, Affine]:
    """Put an object somewhere in the first view, and near that place in the second."""
    extent = np.array(size, dtype=float)
    share = np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST)))
    place = rng.uniform(0.15, 0.85, 2) * side
    maps = []
    for _ in range(2):
        scale = max(size) / (share * side)
        maps.append(about(draw_linear(rng, scale, 0.3), extent / 2, place))
        share = float(np.clip(share * np.exp(0.3 * rng.normal()), SMALLEST / 2, 1))
        place = np.clip(place + rng.normal(0, 0.18, 2) * side, 0.05 * side, 0.95 * side)
    return maps[0], maps[1]


def apply(affine: Affine, places: np.ndarray) -> np.ndarray:
    """Map places (…, 2)."""
    return places @ affine[:, :2].T + affine[:, 2]


def inverse(affine: Affine) -> Affine:
    """Return the map back."""
    linear = np.linalg.inv(affine[:, :2])
    return np.concatenate([linear, -linear @ affine[:, 2:]], axis=1)


# --- drawing ---------------------------------------------------------------------------------------------------------


def _drawn(layers: Sequence[Layer], view: int, side: int) -> tuple[Image.Image, np.ndarray]:
    """Draw a view: RGB, and (layers, side, side) bool, where each layer is opaque."""
    canvas, opaque = None, []
    for layer in layers:
        picture = warped(layer.picture, layer.maps[view], side)
        opaque.append(np.asarray(picture.getchannel("A")) >= OPAQUE)
        if canvas is None:
            canvas = Image.new("RGB", (side, side), mean_colour(layer.picture))
        canvas.paste(picture, mask=picture.getchannel("A"))
    assert canvas is not None
    return canvas, np.stack(opaque)


def warped(picture: Image.Image, affine: Affine, side: int, fill: tuple[int, int, int] | None = None) -> Image.Image:
    """Draw a picture under a map from places of the view to its own, averaging where it is made smaller; outside it is
    `fill`, or zeros, which is transparent in RGBA.
    """
    factor = int(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
    if factor > 1:
        picture, affine = picture.reduce(factor), affine / factor
    # PIL takes places at pixel centres: it adds half a pixel before the map.
    return picture.transform(
        (side, side),
        Image.Transform.AFFINE,
        affine.ravel().tolist(),
        resample=Image.Resampling.BILINEAR,
        fillcolor=fill,
    )


def mean_colour(picture: Image.Image) -> tuple[int, int, int]:
    """Return the mean of an RGB or RGBA picture's colours."""
    red, green, blue = np.asarray(picture.convert("RGB").resize((1, 1), Image.Resampling.BOX)).ravel().tolist()
    return red, green, blue


def developed(picture: Image.Image, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Change light, colour, sharpness and noise, by `strength` of what is usual: (side, side, 3) uint8."""
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(strength * rng.uniform(0.3, 1.3)))
    levels = (np.arange(256) / 255) ** np.exp(0.25 * strength * rng.normal())
    values = levels.astype(np.float32)[np.asarray(picture)]
    grey = values.mean(axis=2, keepdims=True)
    saturation = 0.0 if rng.random() < 0.08 * strength else float(np.exp(0.35 * strength * rng.normal()))
    values = grey + saturation * (values - grey)
    level = float(values.mean())
    values = level + float(np.exp(0.25 * strength * rng.normal())) * (values - level)
    gains, offset = np.exp(0.06 * strength * rng.normal(size=3)), 0.08 * strength * rng.normal()
    values = values * gains.astype(np.float32) + float(offset)
    if rng.random() < 0.4:
        noise = rng.standard_normal(values.shape, dtype=np.float32)
        values = values + float(rng.uniform(0, 0.04 * strength)) * noise
    return (255 * np.clip(values, 0, 1) + 0.5).astype(np.uint8)


def cell_centres(side: int, cell: int) -> np.ndarray:
    """Return the centres of the cells of a view, (h, w, 2), x and y in pixels."""
    middles = np.arange(side // cell) * cell + cell / 2
    return np.stack(np.meshgrid(middles, middles), axis=-1)


def _places(layers: Sequence[Layer], first: np.ndarray, second: np.ndarray, side: int, cell: int) -> np.ndarray:
    """Find where the cells of the first view lie in the second; `first`, `second` (layers, side, side) are opaque."""
    centres = cell_centres(side, cell)
    places = np.full(centres.shape, np.nan)
    top, top_there = (len(layers) - 1 - opaque[::-1].argmax(axis=0) for opaque in (first, second))
    shown = first.any(axis=0)
    at = centres.astype(int)
    for number, layer in enumerate(layers):
        there = apply(inverse(layer.maps[1]), apply(layer.maps[0], centres))
        within = ((there >= 0) & (there < side)).all(axis=-1)
        own = within & shown[at[..., 1], at[..., 0]] & (top[at[..., 1], at[..., 0]] == number)
        spot = np.clip(np.nan_to_num(there), 0, side - 1).astype(int)
        seen = (top_there[spot[..., 1], spot[..., 0]] == number) & second.any(axis=0)[spot[..., 1], spot[..., 0]]
        places[own & seen] = there[own & seen]
    return places
