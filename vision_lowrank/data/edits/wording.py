"""Sentences about an edit: what was done, where, how large, and by which signs it can be told.

Every sentence is true by the edit's mechanism; which of several is used, and their order, is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from ..manipulation.base import Box

PLACES = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the centre", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)
SIZES = (
    "",
    "It covers about {share} % of the picture.",
    "About {share} % of the picture was changed.",
    "The edited area is about {share} % of the picture.",
)
BEGINNINGS = ("", "", "This photograph was edited.", "The picture is not as it was taken.")
ENDINGS = ("", "", "The rest of the picture was left as it was.", "Nothing else was changed.")


def where(mask: np.ndarray, boxes: Sequence[Box] | None = None) -> str:
    """Say where an edit lies, by the third of the picture in which the centre of each large part lies.

    Args:
        mask: (H, W) bool.
        boxes: where they say better than the mask what its parts are.
    """
    if boxes is not None:
        mask = np.zeros_like(mask)
        for left, top, right, bottom in boxes:
            mask[int(top) : int(bottom), int(left) : int(right)] = True
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=2)[1:]
    large = [number + 1 for number in range(count) if sizes[number] >= 0.2 * sizes.sum()] or [1]
    centres = ndimage.center_of_mass(mask, labels, large)
    names = (PLACES[_third(y, mask.shape[0])][_third(x, mask.shape[1])] for y, x in centres)
    return " and ".join(dict.fromkeys(names))


def explain(
    rng: np.random.Generator,
    openings: Sequence[str],
    words: Mapping[str, str],
    place: str,
    signs_of_cues: Sequence[Sequence[str]],
    area: float,
) -> str:
    """Say what was done, the signs of each cue in random order, and the edited area's size, a share of the picture."""
    share = max(1, round(100 * area))
    signs = [_pick(rng, signs_of_cues[number]) for number in rng.permutation(len(signs_of_cues))]
    size = _pick(rng, SIZES).format(share=share)
    middle = [size, *signs] if rng.random() < 0.5 else [*signs, size]
    opening = fill(rng, openings, words, place)
    sentences = (_pick(rng, BEGINNINGS), opening, *middle, _pick(rng, ENDINGS))
    return " ".join(sentence for sentence in sentences if sentence)


def fill(rng: np.random.Generator, sentences: Sequence[str], words: Mapping[str, str], place: str) -> str:
    """Fill one of `sentences`, such as instructions, with place and words."""
    return _pick(rng, sentences).format(where=place, Where=place[0].upper() + place[1:], **words)


def _pick(rng: np.random.Generator, sentences: Sequence[str]) -> str:
    return sentences[int(rng.integers(len(sentences)))]


def _third(position: float, length: int) -> int:
    return min(2, int(3 * (position + 0.5) / length))
