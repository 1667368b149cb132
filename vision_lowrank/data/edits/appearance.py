"""Changes of appearance: another colour, or another material under the same shading.

Recolouring works on luminance Y and chroma (I, Q) of YIQ, in which colours of one hue lie on a ray:

    Y' = g Y        (I, Q)' = s R(φ) (I, Q) + t

with one of: turn of hue φ, saturation s, gain g (with s = g), or a tint t, which also colours grey things.

A material is the donor's detail and chroma on the photograph's shading, G a Gaussian blur:

    Y' = G(Y_photo) · Y_donor / G(Y_donor)        (I, Q)' = (I, Q)_donor
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from .base import Change, Donor, Kind, Pixels, blend
from .shapes import feather_width, region, soft
from .splice import LUMA, covering

TO_YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
FROM_YIQ = np.linalg.inv(TO_YIQ)
SHADING = 0.04
CHANGES = {
    "hue": ("color",),
    "saturation": ("color",),
    "brightness": ("light",),
    "tint": ("color",),
}


def recolour(photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Give a region another hue, saturation, brightness or tint, with a soft edge."""
    alpha = soft(region(rng, photo.shape[:2]), feather_width(rng, photo.shape[:2]))
    what = str(rng.choice(list(CHANGES)))
    matrix, offset = np.eye(3), np.zeros(3)
    if what == "hue":
        angle = rng.choice([-1, 1]) * rng.uniform(np.pi / 6, np.pi)
        matrix[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    elif what == "saturation":
        matrix[1:, 1:] *= rng.choice([rng.uniform(0, 0.4), rng.uniform(1.8, 3)])
    elif what == "brightness":
        matrix *= rng.choice([rng.uniform(0.45, 0.75), rng.uniform(1.3, 1.8)])
    else:
        angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(25, 60)
        offset[1:] = strength * np.cos(angle), strength * np.sin(angle)
    new = photo @ (FROM_YIQ @ matrix @ TO_YIQ).T + FROM_YIQ @ offset
    return Change(blend(photo, new, alpha), alpha > 0.5, CHANGES[what], {"what": what})


def material(photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Give a region the texture and chroma of another photograph under its own shading."""
    shape = photo.shape[:2]
    alpha = soft(region(rng, shape), feather_width(rng, shape))
    other = covering(donor, photo, rng)
    radius = SHADING * min(shape)
    texture = _luminance(other) / np.maximum(_luminance(other, radius), 4)
    yiq = other @ TO_YIQ.T
    yiq[..., 0] = _luminance(photo, radius) * np.clip(texture, 0.3, 3)
    return Change(blend(photo, yiq @ FROM_YIQ.T, alpha), alpha > 0.5)


def _luminance(photo: Pixels, radius: float = 0) -> np.ndarray:
    """Compute the luminance, (H, W) float32, blurred by `radius` pixels."""
    grey = Image.fromarray(photo).convert("L")
    return np.asarray(grey.filter(ImageFilter.GaussianBlur(radius)) if radius else grey, dtype=np.float32)


KINDS = (
    Kind(
        "recolour", "color", recolour,
        ("change the {what} of what is {where}", "give the region {where} another {what}"),
        (
            "The {what} of a region {where} was changed.",
            "{Where}, a region was given another {what}.",
            "A region {where} was recoloured: its {what} is not the original one.",
        ),
        {
            "color": ("Its colours differ from the same surfaces around it.", "Colours change at its edge.",
                      "The colours inside do not continue outside."),
            "light": ("Its brightness differs from the same surfaces around it.", "The brightness changes at its edge.",
                      "It is brighter or darker than the scene's light would make it."),
        },
    ),
    Kind(
        "material", "material", material,
        ("make the region {where} of another material", "change the material of what is {where}"),
        (
            "A region {where} was given the surface of another photograph; its shading was kept.",
            "{Where}, the material was changed under the same shading.",
            "The surface {where} was exchanged for another texture.",
        ),
        {
            "texture": ("Its texture does not continue from the surroundings.", "Its texture was taken from elsewhere.",
                        "The texture changes at its edge."),
            "detail": ("The original fine detail is gone.", "Its fine detail is that of another surface.",
                       "Fine detail of the original surface was lost."),
            "color": ("Its colours were taken from another photograph.", "Its hues come from another surface.",
                      "Colours change at its edge."),
        },
        donor=True,
    ),
)  # fmt: skip
