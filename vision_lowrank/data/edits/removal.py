"""Removal: a region is filled in from its surroundings by one of OpenCV's two methods of inpainting.

``telea``: fast marching from the rim inwards (Telea, J. Graphics Tools 2004). ``ns``: lines of equal brightness are
continued as a fluid's stream lines (Bertalmío et al., CVPR 2001). Both change exactly the mask.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from .base import Change, Donor, Kind, Pixels, opencv
from .shapes import region

RADIUS = 3
LARGEST = 0.2


def inpaint(photo: Pixels, mask: np.ndarray, method: str = "telea") -> Pixels:
    """Fill in a region of the photograph.

    Args:
        photo: (H, W, 3) uint8.
        mask: (H, W) bool.
        method: ``telea`` or ``ns``.

    Raises:
        UserError: OpenCV is not installed.
    """
    cv2 = opencv()
    flag = cv2.INPAINT_TELEA if method == "telea" else cv2.INPAINT_NS
    return cv2.inpaint(np.ascontiguousarray(photo), mask.astype(np.uint8) * 255, RADIUS, flag)


def remove(method: str, photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Remove a region by filling it in."""
    mask = region(rng, photo.shape[:2], high=LARGEST)
    return Change(inpaint(photo, mask, method), mask)


FILLED = {
    "texture": (
        "The texture of the surroundings is missing inside.",
        "The filling has no texture of its own.",
        "Texture stops where the filling begins.",
    ),
    "blur": (
        "Its inside is smeared.",
        "Colours of the rim run into each other inside.",
        "The filling is blurred.",
    ),
    "detail": (
        "It has no fine detail.",
        "Fine detail is missing there.",
        "Detail that surrounds it does not reach inside.",
    ),
}

KINDS = tuple(
    Kind(
        f"inpaint-{method}",
        "removal",
        partial(remove, method),
        ("remove what is {where}", "erase the thing that can be seen {where}"),
        (
            "What was {where} was removed and the gap filled in from its surroundings.",
            "{Where}, a region was erased and painted over with the colours around it.",
            "Something was taken out {where}; the hole was filled by inpainting.",
        ),
        FILLED,
        opencv=True,
    )
    for method in ("telea", "ns")
)
