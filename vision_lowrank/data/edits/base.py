"""What every kind of edit is, and the rule for its mask.

A kind's ``make(photo, donor, rng)`` draws one :class:`Change` of a photograph; :meth:`Kind.edit` keeps the first that
can be seen and words it. With α (H, W) in [0, 1] the weight of the new pixels,

    image = photo + α (new - photo)        mask = α > 1/2

so a hard edit changes nothing outside its mask, and a feathered one nothing outside its mask dilated by the feather's
width (Chebyshev distance, at most ``MAX_FEATHER`` pixels). An edit is kept if

* its mask covers ``LEAST_AREA`` to ``MOST_AREA`` of the picture and has a part of 16 pixels or more,
* most pixels of the mask changed, by ``LEAST_CHANGE`` grey levels on average over the mask: a copy of sky onto sky, or
  the blurring of a blank wall, is no edit that anything could find.

The cues are those that the edit's *mechanism* leaves, not what a person saw in that picture: a pasted part of another
photograph has another grain, whether or not it is visible at this size. The table is ``KINDS`` of
:mod:`~vision_lowrank.data.edits.kinds`. Categories are ManipBench's, and ``degradation`` for local blur and noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ...errors import UserError
from ..manipulation.base import Box, Vocabulary
from ..manipulation.regions import boxes_of_mask
from .wording import explain, fill, where

if TYPE_CHECKING:
    from .objects import Objects

# (H, W, 3) uint8, RGB.
Pixels: TypeAlias = np.ndarray

LEAST_AREA, MOST_AREA = 0.01, 0.35
LEAST_CHANGE = 3.0
MIN_FEATHER, MAX_FEATHER = 4, 12
ATTEMPTS = 8

_PLAIN = Vocabulary()
VOCABULARY = Vocabulary(
    categories={**_PLAIN.categories, "visual": (*_PLAIN.categories["visual"], "degradation")},
)


@dataclass(frozen=True)
class Donor:
    """What may be pasted into a photograph.

    Attributes:
        photo: pixels of another photograph, (H', W', 3) uint8; None where there is none.
        objects: cut-out objects; None where there are none.
    """

    photo: Pixels | None = None
    objects: Objects | None = None


@dataclass(frozen=True)
class Change:
    """What a kind drew, not yet worded.

    Attributes:
        image: (H, W, 3) uint8.
        mask: (H, W) bool.
        cues: where they depend on the draw; None = all of the kind's.
        words: what the kind's sentences are filled with, such as ``{"object": "teapot"}``.
        boxes: where they are not the mask's components.
    """

    image: Pixels
    mask: np.ndarray
    cues: tuple[str, ...] | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    boxes: tuple[Box, ...] | None = None


@dataclass(frozen=True)
class Edit:
    """An edited photograph.

    Attributes:
        image: (H, W, 3) uint8.
        mask: (H, W) bool, where pixels were meant to change, see the module docstring.
        cues: signs that the mechanism leaves, in the vocabulary's order.
        category: kind of edit, from ``VOCABULARY``.
        explanation: what was done, where, and the signs of it, in sentences.
        prompt: the edit as an instruction.
        boxes: edited regions, xyxy in pixels.
    """

    image: Pixels
    mask: np.ndarray
    cues: tuple[str, ...]
    category: str
    explanation: str
    prompt: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Kind:
    """One kind of edit.

    Attributes:
        name: the ``editor`` of its records.
        category: from ``VOCABULARY``.
        make: draws a change of a photograph.
        prompts: instructions that would ask for it; ``{where}`` and the change's words are filled in.
        openings: sentences that say what was done, filled in likewise.
        signs: cue -> sentences that say what of it the mechanism leaves.
        donor: needs another photograph.
        objects: needs cut-out objects.
        opencv: needs OpenCV.
    """

    name: str
    category: str
    make: Callable[[Pixels, Donor, np.random.Generator], Change]
    prompts: tuple[str, ...]
    openings: tuple[str, ...]
    signs: Mapping[str, tuple[str, ...]]
    donor: bool = False
    objects: bool = False
    opencv: bool = False

    def edit(self, photo: Pixels, donor: Donor, rng: np.random.Generator) -> Edit | None:
        """Make one edit of `photo` (H, W, 3) uint8; None where ``ATTEMPTS`` draws gave none that shows.

        Raises:
            UserError: the kind needs OpenCV, and it is not installed.
        """
        if (self.donor and donor.photo is None) or (self.objects and donor.objects is None):
            return None
        for _ in range(ATTEMPTS):
            change = self.make(photo, donor, rng)
            if shows(photo, change):
                break
        else:
            return None
        cues = tuple(cue for cue in VOCABULARY.cues if cue in (self.signs if change.cues is None else change.cues))
        place, area = where(change.mask, change.boxes), float(change.mask.mean())
        return Edit(
            change.image,
            change.mask,
            cues,
            self.category,
            explain(rng, self.openings, change.words, place, [self.signs[cue] for cue in cues], area),
            fill(rng, self.prompts, change.words, place),
            boxes_of_mask(change.mask) if change.boxes is None else change.boxes,
        )


def shows(photo: Pixels, change: Change) -> bool:
    """Tell whether an edit is one by the rules of the module docstring."""
    if not LEAST_AREA <= change.mask.mean() <= MOST_AREA or not boxes_of_mask(change.mask):
        return False
    difference = np.abs(change.image[change.mask].astype(np.int16) - photo[change.mask])
    return bool((difference.max(axis=1) > 0).mean() > 0.5 and difference.mean() >= LEAST_CHANGE)


def blend(photo: Pixels, new: np.ndarray, alpha: np.ndarray) -> Pixels:
    """Compute ``photo + alpha (new - photo)``, rounded and clipped; `new` (H, W, 3), any real type, `alpha` (H, W)."""
    mixed = photo + alpha[..., None] * (new - photo.astype(np.float32))
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def opencv() -> ModuleType:
    """Import OpenCV.

    Raises:
        UserError: it is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise UserError(
            'this edit needs OpenCV, which is not installed: pip install "vision-lowrank[manipulation]", or leave out '
            "the kinds that need it."
        ) from None
    return cv2
