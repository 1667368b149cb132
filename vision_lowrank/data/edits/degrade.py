"""Local degradation: a region is blurred, or noise is added to it. Widths grow with the picture's short side."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from .base import Change, Donor, Kind, Pixels, blend
from .shapes import feather_width, region, soft


def blur(photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Blur a region by a Gaussian of 0.8 to 2.5 % of the short side, with a soft edge."""
    shape = photo.shape[:2]
    alpha = soft(region(rng, shape), feather_width(rng, shape))
    radius = float(rng.uniform(0.008, 0.025) * min(shape))
    blurred = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(radius)))
    return Change(blend(photo, blurred, alpha), alpha > 0.5)


def noise(photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Add Gaussian noise of 8 to 30 grey levels to a region, grey or coloured, with a soft edge."""
    shape = photo.shape[:2]
    alpha = soft(region(rng, shape), feather_width(rng, shape))
    channels = int(rng.choice([1, 3]))
    added = rng.standard_normal((*shape, channels), dtype=np.float32) * rng.uniform(8, 30)
    return Change(blend(photo, photo + added, alpha), alpha > 0.5)


KINDS = (
    Kind(
        "blur", "degradation", blur,
        ("blur the region {where}", "make what is {where} blurred"),
        (
            "A region {where} was blurred.",
            "{Where}, the picture was made blurred.",
            "The sharpness of a region {where} was taken away.",
        ),
        {
            "blur": ("It is less sharp than things at the same distance.", "The blur ends at its edge, not in depth.",
                     "Its blur is not that of the lens."),
            "detail": ("Its fine detail is gone.", "Fine detail stops at its edge.", "It lacks the detail around it."),
        },
    ),
    Kind(
        "noise", "degradation", noise,
        ("add noise to the region {where}", "make what is {where} noisy"),
        (
            "Noise was added to a region {where}.",
            "{Where}, the picture was made noisy.",
            "A region {where} was covered with noise.",
        ),
        {
            "noise": ("Its noise is stronger than that of the surroundings.", "The noise changes at its edge.",
                      "It is grainier than the rest of the picture."),
        },
    ),
)  # fmt: skip
