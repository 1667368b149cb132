"""A picture under its heat map, boxes and a legend: what a detector found, for people to look at.

    out = (1 - α) picture + α colour(heat),    α = 0.45

with matplotlib's perceptually uniform `viridis`: dark 0, yellow 1. Boxes are drawn in white on black, so that they
show on any picture, with their score where there is room. The legend is a strip at the top or the bottom, wherever the
map is lower, so that it covers less of what was found; pictures too small for it have none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.boxes import Boxes
from .viridis import VIRIDIS

ALPHA = 0.45
_LEAST_TEXT = 10  # pixels


def overlay(
    picture: Image.Image,
    heat: np.ndarray,
    boxes: Boxes,
    legend: str,
) -> Image.Image:
    """Draw the picture, at its size, with what was found in it.

    Args:
        picture: RGB.
        heat: (H, W) in [0, 1], one value per pixel.
        boxes: in pixels of the picture, with scores to write beside them or without.
        legend: such as ``edited 93%``; empty for no strip.
    """
    levels = heat_levels(heat)
    colours = Image.fromarray(levels)
    colours.putpalette(VIRIDIS)
    shown = Image.blend(picture, colours.convert("RGB"), ALPHA)
    draw = ImageDraw.Draw(shown)
    size = max(_LEAST_TEXT, min(picture.size) // 28)
    font = ImageFont.load_default(size)
    texts = [""] * len(boxes) if boxes.scores is None else [f"{score:.2f}" for score in boxes.scores]
    for xyxy, text in zip(boxes, texts, strict=True):
        _draw_box(draw, xyxy, text, font, max(1, min(picture.size) // 250))
    if legend:
        _draw_legend(shown, levels, legend, font, size)
    return shown


def heat_levels(heat: np.ndarray) -> np.ndarray:
    """Convert (H, W) in [0, 1] to uint8 0…255, rounded."""
    return np.rint(np.clip(heat, 0, 1) * np.float32(255)).astype(np.uint8)


def _draw_box(
    draw: ImageDraw.ImageDraw,
    xyxy: Sequence[float],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    line: int,
) -> None:
    width, height = draw.im.size
    left, right = (min(max(round(x), 0), width - 1) for x in (xyxy[0], xyxy[2] - 1))
    top, bottom = (min(max(round(y), 0), height - 1) for y in (xyxy[1], xyxy[3] - 1))
    if right < left or bottom < top:
        return
    draw.rectangle((left - line, top - line, right + line, bottom + line), outline="black", width=3 * line)
    draw.rectangle((left, top, right, bottom), outline="white", width=line)
    _, _, wide, high = draw.textbbox((0, 0), text, font)
    if text and right - left > 2 * wide and bottom - top > 2 * high:
        corner = (left + 2 * line, top + 2 * line)
        draw.text(corner, text, fill="white", font=font, stroke_width=max(1, line), stroke_fill="black")


def _draw_legend(
    shown: Image.Image,
    levels: np.ndarray,
    legend: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: int,
) -> None:
    """Draw a dark strip with the text, and the colours from 0 to 1 where they fit."""
    width, height = shown.size
    draw = ImageDraw.Draw(shown)
    strip, gap = round(1.6 * size), size // 2
    text = draw.textlength(legend, font)
    if strip > height // 3 or text + 2 * gap > width:
        return
    top = 0 if levels[:strip].mean() < levels[-strip:].mean() else height - strip
    draw.rectangle((0, top, width, top + strip - 1), fill="#101418")
    draw.text((gap, top + strip / 2), legend, fill="white", font=font, anchor="lm")
    ends, bar = draw.textlength("0", font), 6 * size
    right = width - gap - ends
    if text + bar + 4 * gap + 2 * ends <= width:
        colours = Image.fromarray(np.tile(np.linspace(0, 255, bar).astype(np.uint8), (size, 1)))
        colours.putpalette(VIRIDIS)
        left = round(right - gap / 2 - bar)
        shown.paste(colours.convert("RGB"), (left, top + (strip - size) // 2))
        draw.text((left - gap / 2, top + strip / 2), "0", fill="white", font=font, anchor="rm")
        draw.text((right, top + strip / 2), "1", fill="white", font=font, anchor="lm")
