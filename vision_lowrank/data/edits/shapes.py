"""Random regions of a picture, their soft edges, and regions that were moved, turned or scaled.

Coordinates are continuous: pixel (x, y) has its centre at (x + 1/2, y + 1/2).
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..outlines import random_outline
from .base import MAX_FEATHER, MIN_FEATHER

TWO_PARTS = 0.2
MARGIN = 0.12


def region(
    rng: np.random.Generator, shape: tuple[int, int], low: float = 0.02, high: float = 0.3, two: float = TWO_PARTS
) -> np.ndarray:
    """Draw a random region, (H, W) bool, of one part or sometimes two.

    Args:
        rng: source of randomness.
        shape: (H, W).
        low: least share of the picture; the share is drawn evenly on a logarithmic scale. What lies beyond the
            picture's border is lost.
        high: largest share.
        two: probability of two parts.
    """
    share = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    parts = 1 + (rng.random() < two)
    canvas = Image.new("1", shape[::-1])
    draw = ImageDraw.Draw(canvas)
    extent = np.array(shape[::-1], dtype=np.float64)
    for _ in range(parts):
        centre = rng.uniform(MARGIN, 1 - MARGIN, 2) * extent
        points = centre + random_outline(rng) * np.sqrt(share / parts * extent.prod())
        draw.polygon([(float(x), float(y)) for x, y in points], fill=1)
    return np.array(canvas)


def soft(mask: np.ndarray, width: int) -> np.ndarray:
    """Soften the edge of a mask, to (H, W) float32 in [0, 1].

    Args:
        mask: (H, W) bool.
        width: feather in pixels, at least 4: the result is 0 farther than this (Chebyshev) from the mask.
    """
    # PIL's Gaussian is three box filters: a standard deviation of width / 4 reaches no farther than width
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(width / 4))
    return np.asarray(blurred, dtype=np.float32) / 255


def feather_width(rng: np.random.Generator, shape: tuple[int, int]) -> int:
    """Draw a feather that suits the picture's size, in pixels."""
    return int(np.clip(round(rng.uniform(0.015, 0.05) * min(shape)), MIN_FEATHER, MAX_FEATHER))


def centre_of(mask: np.ndarray) -> np.ndarray:
    """Compute (x, y), float64, of a region's centre of mass."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5])


def moved(
    picture: np.ndarray,
    about: np.ndarray,
    to: np.ndarray,
    scale: float = 1.0,
    angle: float = 0.0,
    mirror: bool = False,
) -> np.ndarray:
    """Move a picture so that its point `about` lies at `to`, scaled and turned about it; black where nothing was.

    Args:
        picture: (H, W, 3) uint8 or (H, W) bool; a shift by whole pixels alone copies values exactly.
        about: (x, y).
        to: (x, y).
        scale: above 1 enlarges.
        angle: in degrees.
        mirror: left and right swapped, before turning.
    """
    if picture.dtype == bool:
        return moved(picture.astype(np.uint8) * 255, about, to, scale, angle, mirror) > 127
    cosine, sine = np.cos(np.deg2rad(angle)) / scale, np.sin(np.deg2rad(angle)) / scale
    inverse = np.array([[cosine, sine], [-sine, cosine]])
    if mirror:
        inverse[0] *= -1
    shift = about - inverse @ to
    exact = scale == 1 and angle == 0 and not mirror
    resample = Image.Resampling.NEAREST if exact else Image.Resampling.BICUBIC
    image = Image.fromarray(picture)
    coefficients = (*inverse[0], shift[0], *inverse[1], shift[1])
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, coefficients, resample))
