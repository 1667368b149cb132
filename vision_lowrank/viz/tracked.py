"""Tracked frames for people: boxes drawn into frames, and one self-contained page with a strip of them and the scores.

Targets have colours that those who cannot tell red from green tell apart (Okabe and Ito's), on a dark edge, so that
they show on any frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import write_text
from .encoding import data_uri, encode_jpeg
from .pages import template

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
STRIP = 16  # frames on the page, at most
_THUMBNAIL, _LETTERS = 400, 19  # pixels, twice what they are on the page
_PLOT = (900, 160)  # pixels


def draw_tracks(
    frame: np.ndarray, boxes: np.ndarray, scores: np.ndarray, hide_below: float = 0.0, letters: int | None = None
) -> np.ndarray:
    """Draw the boxes of all targets into a copy of a frame.

    Args:
        frame: (H, W, 3) uint8 RGB.
        boxes: (T, 4) left, top, width, height in pixels.
        scores: (T,) written beside them.
        hide_below: boxes with a lower score are not drawn.
        letters: height of the numbers in pixels; None = by the frame's size.

    Returns:
        (H, W, 3) uint8.
    """
    picture = Image.fromarray(frame)
    draw = ImageDraw.Draw(picture)
    width = max(2, min(picture.size) // 160)
    font = ImageFont.load_default(letters or max(12, min(picture.size) // 22))
    for number, ((left, top, wide, high), score) in enumerate(zip(boxes.tolist(), scores.tolist(), strict=True)):
        if score < hide_below:
            continue
        corners = (left, top, max(left + wide, left + 1), max(top + high, top + 1))
        draw.rectangle([edge + d * (width // 2 + 1) for edge, d in zip(corners, (-1, -1, 1, 1), strict=True)],
                       outline="black", width=width + 2)  # fmt: skip
        draw.rectangle(corners, outline=COLOURS[number % len(COLOURS)], width=width)
        text = f"{score:.2f}" if len(boxes) == 1 else f"{number + 1}: {score:.2f}"
        place = (left, top - 1.2 * font.size if top > 1.3 * font.size else top + 2)
        edge = 1 if font.size < 20 else 2
        draw.text(place, text, COLOURS[number % len(COLOURS)], font, stroke_width=edge, stroke_fill="black")
    return np.asarray(picture)


class Strip:
    """Collects small pictures of some frames, evenly spread however many there will be, and of the last."""

    def __init__(self, most: int = STRIP, hide_below: float = 0.0) -> None:
        """Collect at most so many; `hide_below` as for :func:`draw_tracks`."""
        self._most, self._every, self._hide_below = most, 1, hide_below
        self._kept: dict[int, bytes] = {}
        self._last: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None

    def add(self, number: int, frame: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> None:
        """Keep frame `number`, with its boxes, if it is among those shown so far; see :func:`draw_tracks`."""
        self._last = number, frame, boxes, scores
        if number % self._every:
            return
        self._kept[number] = self._small(frame, boxes, scores)
        if len(self._kept) >= self._most:
            self._every *= 2
            self._kept = {number: data for number, data in self._kept.items() if number % self._every == 0}

    def pictures(self) -> list[tuple[int, str]]:
        """Return numbers and data URIs of the frames, in order; first and last are among them."""
        if self._last is None:
            return []
        number, *seen = self._last
        kept = self._kept | ({} if number in self._kept else {number: self._small(*seen)})
        return [(number, data_uri(data)) for number, data in kept.items()]

    def _small(self, frame: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> bytes:
        """Draw boxes into a frame that is small already, so that lines and numbers can be read."""
        picture = Image.fromarray(frame)
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        scale = np.tile(np.array(picture.size) / frame.shape[1::-1], 2)
        drawn = draw_tracks(np.asarray(picture), boxes * scale, scores, self._hide_below, _LETTERS)
        return encode_jpeg(Image.fromarray(drawn), 82)


def write_track_page(path: Path, about: Mapping[str, Any], scores: np.ndarray, strip: Strip) -> Path:
    """Write the page.

    Args:
        path: the file.
        about: ``title``, ``lead`` and ``facts`` (name -> text) for people; ``notes``, lines of what went wrong.
        scores: (L, T) of every frame and target; those of the first frame, which was given, are not shown.
        strip: pictures of some frames.
    """
    context = dict(about) | {"pictures": strip.pictures(), "curves": _curves(scores), "plot": _PLOT}
    means = [float(column.mean()) for column in scores[1:].T] if len(scores) > 1 else []
    context |= {"frames": len(scores), "means": means}
    write_text(path, template("tracked.html.jinja").render(context))
    return path


def _curves(scores: np.ndarray) -> list[tuple[str, str]]:
    """Return a colour and the points of a polyline for each target, from the second frame on."""
    width, height = _PLOT
    x = np.linspace(0, width, len(scores))[1:]
    return [
        (
            COLOURS[number % len(COLOURS)],
            " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, height * (1 - column), strict=True)),
        )
        for number, column in enumerate(scores[1:].T)
    ]
