"""What a detector says of one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ...data.manipulation.base import Box

Verdict: TypeAlias = Literal["edited", "real", "uncertain"]


@dataclass(frozen=True)
class ScoredBox:
    """A region that was probably edited.

    Attributes:
        xyxy: left, top, right, bottom in pixels of the picture.
        score: objectness in [0, 1].
    """

    xyxy: Box
    score: float


@dataclass(frozen=True)
class Finding:
    """The outcome for one picture. The heads decide; the text follows them.

    Attributes:
        verdict: ``uncertain`` inside the calibrated band.
        probability: calibrated likelihood, under this model, that the picture was edited.
        boxes: regions, highest score first.
        cues: (name, probability) of the visible signs above their threshold, most probable first; none for a picture
            found real.
        explanation: text for people.
        explained_by: ``model``, where a language model wrote it, or ``template``.
        heatmap: (H, W) float32 in [0, 1], edited-area likelihood per pixel of the picture.
    """

    verdict: Verdict
    probability: float
    boxes: tuple[ScoredBox, ...]
    cues: tuple[tuple[str, float], ...]
    explanation: str
    explained_by: Literal["model", "template"]
    heatmap: np.ndarray
