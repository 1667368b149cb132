"""Resizing of a region: it is scaled about its centre and blended back in.

Enlarged by 1.25 to 1.7 it covers its old place: the mask is the larger region. Reduced to 0.5 to 0.8, its old place is
filled in from the surroundings first: the mask is the old region.
"""

from __future__ import annotations

import numpy as np

from .base import Change, Donor, Kind, Pixels, blend
from .removal import inpaint
from .shapes import centre_of, feather_width, moved, region, soft


def resize(photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Enlarge or shrink a region, with a soft edge."""
    shape = photo.shape[:2]
    old = region(rng, shape, 0.03, 0.15, two=0)
    if not old.any():
        return Change(photo, old)
    larger = bool(rng.random() < 0.5)
    scale = float(rng.uniform(1.25, 1.7) if larger else rng.uniform(0.5, 0.8))
    centre = centre_of(old)
    alpha = soft(moved(old, centre, centre, scale), feather_width(rng, shape))
    alpha = alpha * moved(np.ones(shape, dtype=bool), centre, centre, scale)
    rest, mask = (photo, alpha > 0.5) if larger else (inpaint(photo, old), old | (alpha > 0.5))
    cues = ("shape", "structure", "detail") if larger else ("shape", "structure", "texture")
    words = {"size": "larger" if larger else "smaller"}
    return Change(blend(rest, moved(photo, centre, centre, scale), alpha), mask, cues, words)


KINDS = (
    Kind(
        "resize-region", "resizing", resize,
        ("make what is {where} {size}", "change the size of the thing {where}: {size}"),
        (
            "A region {where} was made {size}.",
            "{Where}, a part of the picture was scaled; it is {size} than it was.",
            "The size of a region {where} was changed: it is {size} than in the original.",
        ),
        {
            "shape": ("Its proportions do not fit those around it.", "Its size does not fit the scene.",
                      "Shapes inside are out of proportion to the rest."),
            "structure": ("Lines of the surroundings miss their continuation inside.", "Lines break at its rim.",
                          "Contours are displaced at its edge."),
            "detail": ("Its detail is coarser than that around it.", "Enlarging has softened its fine detail.",
                       "Its pixels were interpolated: fine detail is missing."),
            "texture": ("A ring around it was filled in and has lost its texture.", "The texture around it is smeared.",
                        "Around it the texture was painted over."),
        },
        opencv=True,
    ),
)  # fmt: skip
