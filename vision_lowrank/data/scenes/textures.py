"""What objects look like: an emoji's drawing, or a piece of a photograph, with premultiplied transparency.

Colours are multiplied by alpha before anything is resampled (Pillow's mode ``RGBa``), so that no colour from beyond an
outline can shine through at its edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from ..emoji import Emoji, emoji_rgba
from .pools import Pool

PADDING = 8  # transparent pixels on every side, so that edges are smooth after resampling too
LONGEST = 128  # pixels of a cut-out's longest side
FINER = 4  # outlines are drawn so much larger, then reduced


class Texture:
    """A picture with transparency, in several sizes.

    Attributes:
        extent: (width, height) of the object itself in pixels, without the padding.
    """

    def __init__(self, picture: Image.Image) -> None:
        """Keep `picture`, RGBA, cut to what is not transparent.

        Args:
            picture: has a pixel that is not transparent.
        """
        picture = picture.crop(picture.getchannel("A").getbbox())
        self.extent = picture.size
        padded = Image.new("RGBA", (picture.width + 2 * PADDING, picture.height + 2 * PADDING))
        padded.paste(picture, (PADDING, PADDING))
        self._levels = {0: padded.convert("RGBa")}

    def level(self, scale: float) -> tuple[Image.Image, float]:
        """Return the size to sample from when the object is drawn at `scale` times its own pixels.

        Returns:
            A picture, RGBa, and its pixels per pixel of the object: between 1 and 2 times `scale`, at most 2.
        """
        level = int(np.clip(-np.floor(np.log2(max(scale, 1e-6))) - 1, -1, 3))
        if level not in self._levels:
            own = self._levels[0]
            self._levels[level] = own.reduce(2**level) if level > 0 else _enlarged(own)
        return self._levels[level], 2.0**-level


@lru_cache(maxsize=512)
def emoji_texture(style: str, code: str) -> Texture:
    """Return the drawing of an emoji."""
    return Texture(emoji_rgba(style, code))


@dataclass(frozen=True)
class EmojiLook:
    """An emoji, a row of the table, in one style."""

    style: str
    row: Emoji

    @property
    def name(self) -> str:
        """Return such as ``fluent/1f600``."""
        return f"{self.style}/{self.row.code}"

    def texture(self, pool: Pool) -> Texture:
        """Return its drawing."""
        return emoji_texture(self.style, self.row.code)


@dataclass(frozen=True, eq=False)
class CutOutLook:
    """A piece of a photograph.

    Attributes:
        photograph: its number in the pool.
        outline: (n, 2), a polygon.
        share: square root of its area as a share of the photograph's shorter side.
        places: (m, 2), where it may be cut out, as shares of the free way; the one with the most contrast is.
    """

    photograph: int
    outline: np.ndarray
    share: float
    places: np.ndarray

    @property
    def name(self) -> str:
        """Return such as ``photograph/12``."""
        return f"photograph/{self.photograph}"

    def texture(self, pool: Pool) -> Texture:
        """Cut it out.

        Raises:
            DataError: the photograph cannot be read.
        """
        photograph = pool.photograph(self.photograph)
        points = self.outline - self.outline.min(axis=0)
        side = min(self.share * min(photograph.size), (0.95 * np.array(photograph.size) / points.max(axis=0)).min())
        width, height = (max(2, int(extent)) for extent in np.ceil(points.max(axis=0) * side))
        free = np.array(photograph.size) - (width, height)
        corners = [(int(left), int(top)) for left, top in self.places * free]
        pieces = [photograph.crop((left, top, left + width, top + height)) for left, top in corners]
        piece = max(pieces, key=_contrast)
        if max(piece.size) > LONGEST:
            factor = LONGEST / max(piece.size)
            size = tuple(max(2, round(extent * factor)) for extent in piece.size)
            piece, side = piece.resize(size, Image.Resampling.BICUBIC), side * factor
        piece.putalpha(_filled(points * side, piece.size))
        return Texture(piece)


def _contrast(piece: Image.Image) -> float:
    return float(np.asarray(piece.resize((16, 16), Image.Resampling.BOX), dtype=np.float32).std(axis=(0, 1)).sum())


def _filled(points: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Fill a polygon (n, 2) with smooth edges."""
    canvas = Image.new("L", (size[0] * FINER, size[1] * FINER))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points * FINER], fill=255)
    return canvas.reduce(FINER)


def _enlarged(picture: Image.Image) -> Image.Image:
    """Double the size; bicubic overshoot is cut off, as no premultiplied colour is brighter than its alpha."""
    twice = np.asarray(picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.BICUBIC)).copy()
    np.minimum(twice[..., :3], twice[..., 3:], out=twice[..., :3])
    return Image.frombytes("RGBa", (picture.width * 2, picture.height * 2), twice.tobytes())
