"""Copy-move: a region of the photograph is copied to another place, perhaps turned, scaled or mirrored.

The mask marks the copy only: the original's pixels did not change.
"""

from __future__ import annotations

import numpy as np

from .base import Change, Donor, Kind, Pixels, blend
from .shapes import centre_of, feather_width, moved, region, soft

PLAIN, FEATHERED, MIRRORED = 0.4, 0.5, 0.3
LEAST_SHIFT = 0.6


def copy_move(photo: Pixels, donor: Donor, rng: np.random.Generator) -> Change:
    """Copy a region to a place at least 0.6 of its diameter away; 40 % are shifted by whole pixels only."""
    shape = photo.shape[:2]
    original = region(rng, shape, 0.02, 0.15, two=0)
    if not original.any():
        return Change(photo, original)
    about, to = centre_of(original), _target(rng, original)
    if rng.random() < PLAIN:
        how = (about, about + np.rint(to - about))
    else:
        mirror = bool(rng.random() < MIRRORED)
        how = (about, to, float(rng.uniform(0.7, 1.4)), float(rng.uniform(-45, 45)), mirror)
    # what the move would fetch from beyond the border stays as it was
    mask = moved(original, *how) & moved(np.ones(shape, dtype=bool), *how)
    new = moved(photo, *how)
    if rng.random() < FEATHERED:
        alpha = soft(mask, feather_width(rng, shape)) * moved(np.ones(shape, dtype=bool), *how)
        return Change(blend(photo, new, alpha), alpha > 0.5)
    return Change(np.where(mask[..., None], new, photo), mask)


def _target(rng: np.random.Generator, original: np.ndarray) -> np.ndarray:
    """Choose where the copy's centre goes, (x, y): of some random places one far enough away, else the farthest."""
    extent = np.array(original.shape[::-1])
    about = centre_of(original)
    places = rng.uniform(0.1, 0.9, (8, 2)) * extent
    distances = np.linalg.norm(places - about, axis=1)
    enough = np.flatnonzero(distances >= LEAST_SHIFT * 2 * np.sqrt(original.sum() / np.pi))
    return places[enough[0] if len(enough) else distances.argmax()]


KINDS = (
    Kind(
        "copy-move", "addition", copy_move,
        ("duplicate a part of the picture {where}", "copy a part of this picture and put the copy {where}"),
        (
            "A part of the same photograph was copied and pasted {where}.",
            "{Where}, a region repeats another place of this photograph.",
            "What can be seen {where} is a copy of another part of the picture.",
        ),
        {
            "texture": ("The same texture occurs twice in the picture.", "Its texture repeats that of another place.",
                        "Its pattern has a double elsewhere in the picture."),
            "structure": ("Lines of the surroundings stop at its outline.", "Its outline cuts through the scene.",
                          "Contours do not continue across its edge."),
        },
    ),
)  # fmt: skip
