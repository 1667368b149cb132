"""Replacement: a region is filled in from its surroundings, and something else is put in its place.

That is an object, or a region of another photograph with a soft edge. The mask is the filled region together with what
was pasted.
"""

from __future__ import annotations

import numpy as np

from .base import Change, Donor, Kind, Pixels, blend
from .removal import inpaint
from .shapes import centre_of, feather_width, moved, region, soft
from .splice import covering, placed_object

WITH_OBJECT = 0.5
LARGEST = 0.15


def replace(photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Fill in a region, and put an object or a part of another photograph in its place."""
    gap = region(rng, photo.shape[:2], 0.03, LARGEST, two=0)
    if not gap.any():
        return Change(photo, gap)
    filled = inpaint(photo, gap)
    centre = centre_of(gap)
    if donor.objects is not None and rng.random() < WITH_OBJECT:
        share = float(2 * np.sqrt(gap.sum() / np.pi) / min(gap.shape) * rng.uniform(0.8, 1.2))
        name, new, alpha = placed_object(photo, donor, rng, (int(centre[0]), int(centre[1])), share)
    else:
        name = "a part of another photograph"
        new = covering(donor, photo, rng)
        alpha = soft(moved(gap, centre, centre, float(rng.uniform(0.75, 1.0))), feather_width(rng, gap.shape))
    return Change(blend(filled, new, alpha), gap | (alpha > 0.5), words={"object": name})


KINDS = (
    Kind(
        "replace", "replacement", replace,
        ("replace what is {where} by something else ({object})", "exchange the thing {where} for this: {object}"),
        (
            "What was {where} was removed and replaced ({object}).",
            "{Where}, a region was erased and something else put in its place: {object}.",
            "The original content {where} was exchanged for something else ({object}).",
        ),
        {
            "relation": ("It does not belong to the scene.", "It has no relation to what is around it.",
                         "Nothing around it goes with it."),
            "texture": ("The texture changes where the old content was filled in.",
                        "Its texture does not continue from the surroundings.", "A rim of it has lost its texture."),
            "light": ("It is not lit by the light of the scene.", "Its light and shade are of another origin.",
                      "Light and shade do not continue from the surroundings."),
            "color": ("Its colours were not made by this camera.", "Its colours do not come from this scene.",
                      "Its colours have another origin than those around it."),
        },
        donor=True, opencv=True,
    ),
)  # fmt: skip
