"""Text edits: words drawn onto the photograph, or onto a patch that was filled in first.

Words are set in PIL's built-in font at 10 to 28 % of the short side, turned a little, in a light or a dark colour that
stands out from its place. ``text-add`` marks the letters, whose one box spans them all; ``text-replace`` marks the
filled patch, in which the letters lie.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .base import Change, Donor, Kind, Pixels, blend
from .removal import inpaint

WORDS = (
    "SALE", "OPEN", "EXIT", "STOP", "CAFE", "HOTEL", "PARK", "TAXI", "NEWS", "FRESH", "ROOM", "GATE", "Hello", "Bakery",
    "Museum", "Market", "Platform", "Private", "Welcome", "No entry", "Price", "Total", "Date", "Street",
)  # fmt: skip


def add_text(photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Draw words onto the photograph."""
    words, alpha = _lettering(rng, photo.shape[:2])
    mask = alpha > 0.5
    image = blend(photo, _colour(photo, mask, rng), alpha)
    return Change(image, mask, ("text", "noise"), {"text": words}, _extent(mask))


def replace_text(photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Fill in a rectangle from its surroundings, and draw words into it."""
    words, alpha = _lettering(rng, photo.shape[:2])
    patch = np.zeros(alpha.shape, dtype=bool)
    margin = max(2, round(0.02 * min(patch.shape)))
    for left, top, right, bottom in _extent(alpha > 0):
        rows = slice(max(0, int(top) - margin), int(bottom) + margin)
        patch[rows, max(0, int(left) - margin) : int(right) + margin] = True
    filled = inpaint(photo, patch)
    return Change(blend(filled, _colour(filled, patch, rng), alpha), patch, words={"text": words})


def _lettering(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[str, np.ndarray]:
    """Draw words and their alpha, (H, W) float32."""
    words = str(rng.choice(WORDS))
    if rng.random() < 0.4:
        words = f"{words} {int(rng.integers(2, 1000))}"
    size = rng.uniform(0.1, 0.28) * min(shape)
    font = ImageFont.load_default(float(size))
    left, top, right, bottom = font.getbbox(words)
    fitting = 0.92 * shape[1] / (right - left)
    if fitting < 1:
        font = ImageFont.load_default(float(size * fitting))
        left, top, right, bottom = font.getbbox(words)
    width, height = right - left, bottom - top
    x, y = (rng.uniform(0.02, 0.98) * max(0, n - each) for n, each in zip(shape[::-1], (width, height), strict=True))
    canvas = Image.new("L", shape[::-1])
    ImageDraw.Draw(canvas).text((int(x - left), int(y - top)), words, fill=255, font=font)
    angle, centre = float(rng.choice([0, rng.uniform(-8, 8)])), (x + width / 2, y + height / 2)
    turned = canvas.rotate(angle, Image.Resampling.BICUBIC, center=centre)
    return words, np.asarray(turned, dtype=np.float32) / 255


def _colour(photo: Pixels, where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a colour, (1, 1, 3), dark on bright places and bright on dark ones."""
    dark = bool(where.any()) and photo[where].mean() > 128
    low, high = (0, 90) if dark else (165, 256)
    return rng.integers(low, high, (1, 1, 3)).astype(np.float32)


def _extent(mask: np.ndarray) -> tuple[tuple[float, float, float, float], ...]:
    """Find the box around everything in a mask; none where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return ()
    return ((float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)),)


_TEXT = (
    "Its letters follow no surface of the scene.",
    "The letters lie on the picture, not in the scene.",
    "Its letters have the even strokes of a computer font.",
)
_NOISE = (
    "The letters have no grain.",
    "Inside its letters the photograph's noise is missing.",
    "Its letters are of one even colour without noise.",
)

KINDS = (
    Kind(
        "text-add", "scene_text", add_text,
        ("write “{text}” {where}", "add the words “{text}” {where}"),
        (
            "The words “{text}” were written onto the photograph {where}.",
            "{Where}, text was added: “{text}”.",
            "The text “{text}” {where} was not in the photograph.",
        ),
        {"text": _TEXT, "noise": _NOISE},
    ),
    Kind(
        "text-replace", "scene_text", replace_text,
        ("replace what is {where} by the words “{text}”", "paint over the place {where} and write “{text}” on it"),
        (
            "A patch {where} was painted over and the words “{text}” written on it.",
            "{Where}, the original content was painted over and replaced by text: “{text}”.",
            "The text “{text}” {where} stands on a patch that was filled in.",
        ),
        {
            "text": _TEXT, "noise": _NOISE,
            "texture": ("The patch around the letters has lost its texture.", "Texture is missing behind the letters.",
                        "Behind the letters the texture of the surroundings ends."),
        },
        opencv=True,
    ),
)  # fmt: skip
