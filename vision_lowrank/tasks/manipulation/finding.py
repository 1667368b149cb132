"""What a model of manipulation says of one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

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

    def to_row(self) -> dict[str, Any]:
        """Return all but the heat map: ``boxes`` as ``{"xyxy", "score"}`` and ``cues`` as ``{"name", "prob"}``."""
        return {
            "verdict": self.verdict,
            "probability": round(float(self.probability), 6),
            "boxes": self.boxes.to_rows(),
            "cues": [{"name": name, "prob": round(float(probability), 6)} for name, probability in self.cues],
            "explanation": self.explanation,
            "explained_by": self.explained_by,
        }

    def to_cells(self) -> dict[str, str]:
        """Return the verdict, the likelihood of an edit, and the regions as left, top, right, bottom in pixels."""
        regions = (" ".join(f"{edge:.0f}" for edge in box) for box in self.boxes)
        return {
            "verdict": self.verdict,
            "likelihood": f"{100 * self.probability:.1f}%",
            "regions": ", ".join(regions),
        }
