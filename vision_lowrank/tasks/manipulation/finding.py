"""What a detector says of one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ...data.boxes import Boxes

Verdict: TypeAlias = Literal["edited", "real", "uncertain"]


@dataclass(frozen=True)
class Finding:
    """The outcome for one picture. The heads decide; the text follows them.

    Attributes:
        verdict: ``uncertain`` inside the calibrated band.
        probability: calibrated likelihood, under this model, that the picture was edited.
        boxes: regions with their objectness in [0, 1] as scores, highest first, and the size of the picture.
        cues: (name, probability) of the visible signs above their threshold, most probable first; none for a picture
            found real.
        explanation: text for people.
        explained_by: ``model``, where a language model wrote it, or ``template``.
        heatmap: (H, W) float32 in [0, 1], edited-area likelihood per pixel of the picture.
    """

    verdict: Verdict
    probability: float
    boxes: Boxes
    cues: tuple[tuple[str, float], ...]
    explanation: str
    explained_by: Literal["model", "template"]
    heatmap: np.ndarray
