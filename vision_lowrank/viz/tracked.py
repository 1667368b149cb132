"""Tracked frames for people: boxes drawn into frames, and one self-contained page with a strip of them and the scores.

Targets have colours that those who cannot tell red from green tell apart (Okabe and Ito's), on a dark edge, so that
they show on any frame.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import write_text
from .pages import template

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
STRIP = 12  # frames on the page
_THUMBNAIL = 320
_PLOT = (900, 160)  # pixels


def draw_tracks(frame: np.ndarray, boxes: np.ndarray, scores: np.ndarray, hide_below: float = 0.0) -> np.ndarray:
    """Draw the boxes of all targets into a copy of a frame.

    Args:
        frame: (H, W, 3) uint8 RGB.
        boxes: (T, 4) left, top, width, height in pixels.
        scores: (T,) written beside them.
        hide_below: boxes with a lower score are not drawn.

    Returns:
        (H, W, 3) uint8.
    """
    picture = Image.fromarray(frame)
    draw = ImageDraw.Draw(picture)
    width = max(2, min(picture.size) // 160)
    font = ImageFont.load_default(max(10, min(picture.size) // 22))
    for number, ((left, top, wide, high), score) in enumerate(zip(boxes.tolist(), scores.tolist(), strict=True)):
        if score < hide_below:
            continue
        corners = (left, top, max(left + wide, left + 1), max(top + high, top + 1))
        draw.rectangle([edge + d * (width // 2 + 1) for edge, d in zip(corners, (-1, -1, 1, 1), strict=True)],
                       outline="black", width=width + 2)  # fmt: skip
        draw.rectangle(corners, outline=COLOURS[number % len(COLOURS)], width=width)
        text = f"{score:.2f}" if len(boxes) == 1 else f"{number + 1}: {score:.2f}"
        place = (left, top - 1.2 * font.size if top > 1.3 * font.size else top + 2)
        draw.text(place, text, COLOURS[number % len(COLOURS)], font, stroke_width=2, stroke_fill="black")
    return np.asarray(picture)


class Strip:
    """Collects small pictures of some frames, evenly spread however many there will be."""

    def __init__(self, most: int = STRIP) -> None:
        self._most, self._every, self._kept = most, 1, dict[int, bytes]()

    def add(self, number: int, frame: np.ndarray) -> None:
        """Keep frame `number`, drawn already, if it is among those shown so far."""
        if number % self._every:
            return
        self._kept[number] = _jpeg(frame)
        if len(self._kept) > 2 * self._most:
            self._every *= 2
            self._kept = {number: data for number, data in self._kept.items() if number % self._every == 0}

    def pictures(self) -> list[tuple[int, str]]:
        """Return numbers and data URIs of at most as many frames as the strip has, the first among them."""
        numbers = sorted(self._kept)
        places = np.linspace(0, len(numbers) - 1, min(self._most, len(numbers))).round().astype(int)
        return [(numbers[place], _uri(self._kept[numbers[place]])) for place in dict.fromkeys(places.tolist())]


def write_track_page(path: Path, about: Mapping[str, Any], scores: np.ndarray, strip: Strip) -> Path:
    """Write the page.

    Args:
        path: the file.
        about: ``title``, ``lead`` and ``facts`` (name -> text) for people; ``notes``, lines of what went wrong.
        scores: (L, T) of every frame and target.
        strip: pictures of some frames.
    """
    context = dict(about) | {"pictures": strip.pictures(), "curves": _curves(scores), "plot": _PLOT}
    context |= {"frames": len(scores), "means": [float(column.mean()) for column in scores.T]}
    write_text(path, template("tracked.html.jinja").render(context))
    return path


def _curves(scores: np.ndarray) -> list[tuple[str, str]]:
    """Return a colour and the points of a polyline for each target."""
    width, height = _PLOT
    x = np.linspace(0, width, len(scores)) if len(scores) > 1 else np.array([0.0])
    return [
        (
            COLOURS[number % len(COLOURS)],
            " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, height * (1 - column), strict=True)),
        )
        for number, column in enumerate(scores.T)
    ]


def _jpeg(frame: np.ndarray) -> bytes:
    picture, buffer = Image.fromarray(frame), io.BytesIO()
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def _uri(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
