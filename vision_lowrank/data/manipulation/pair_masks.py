"""Where two pictures of a pair differ: a mask for edits that came without one.

The real picture is resized to the edited one's size. Per pixel d = |Lab(real) - Lab(edited)|, the Euclidean (CIE 1976)
difference, blurred with sigma = 2. More than 60 % of the pixels with d > 12: the editor regenerated or restyled the
whole picture (scope ``global``), and there is no mask. Otherwise

    mask = open_5(close_5(d > max(12, centre + 2 spread))),

5 x 5 px squares, and its components give the boxes. `centre` is the median of d and `spread` 1.4826 times its median
absolute deviation: for normal noise these are mean and standard deviation, which the method's outline names, but of
the unedited part. (With mean and standard deviation of all pixels at most a fifth could ever exceed the threshold, by
Cantelli's inequality, and an even edit of a quarter of the picture would vanish.) Where more than half of the pixels
differ the median is no background, and the threshold is 12.

What comes out is ``annotator: "auto"`` and derived: never to be mixed silently with what people drew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage

from .base import PictureRecord, Scope
from .regions import with_boxes

THRESHOLD, SIGMA, SQUARE, MOST = 12.0, 2.0, 5, 0.6


@dataclass(frozen=True)
class PairDifference:
    """How a pair differs.

    Attributes:
        scope: ``local``; ``global``; or ``unknown`` where nothing was found.
        mask: (H, W) bool at the edited picture's size; None where the scope is ``global``.
        share: part of the pixels with d > 12.
    """

    scope: Scope
    mask: np.ndarray | None
    share: float


def pair_difference(real: Image.Image, edited: Image.Image) -> PairDifference:
    """Compare a real picture (RGB) with its edit (RGB)."""
    from skimage.color import rgb2lab  # its import takes a while

    if real.size != edited.size:
        real = real.resize(edited.size, Image.Resampling.BICUBIC)
    lab = [rgb2lab(np.asarray(picture.convert("RGB"))) for picture in (real, edited)]
    difference = ndimage.gaussian_filter(np.linalg.norm(lab[0] - lab[1], axis=-1), SIGMA)
    share = float((difference > THRESHOLD).mean())
    if share > MOST:
        return PairDifference("global", None, share)
    threshold = THRESHOLD
    if share <= 0.5:
        centre = float(np.median(difference))
        spread = 1.4826 * float(np.median(np.abs(difference - centre)))
        threshold = max(THRESHOLD, centre + 2 * spread)
    square = np.ones((SQUARE, SQUARE))
    # Padded, so that closing does not eat what touches the picture's edge.
    padded = np.pad(difference > threshold, SQUARE)
    closed = ndimage.binary_closing(padded, square)[SQUARE:-SQUARE, SQUARE:-SQUARE]
    opened = ndimage.binary_opening(np.pad(closed, SQUARE, mode="edge"), square)[SQUARE:-SQUARE, SQUARE:-SQUARE]
    return PairDifference("local" if opened.any() else "unknown", opened, share)


def annotated(record: PictureRecord, difference: PairDifference, mask: str) -> PictureRecord:
    """Return `record` with what its pair shows, marked as automatic.

    Args:
        record: an edited picture without mask and boxes.
        difference: from the picture's original to it.
        mask: path that the mask is stored under; unused where there is none.
    """
    record = replace(record, scope=difference.scope, annotator="auto", derived=True)
    if difference.mask is None or difference.scope != "local":
        return record
    return with_boxes(replace(record, mask=mask), difference.mask)
