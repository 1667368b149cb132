"""How good the explanations are: those of the language model where it was taught to explain, else the templates.

Scored are test pictures with an explanation by their annotator, and as many real ones, with the metrics of
:mod:`vision_lowrank.metrics.explanation` that need no other model.
"""

from __future__ import annotations

import numpy as np
import torch

from ...data.manipulation.base import REAL, ManipulationSet
from ...metrics.calibration import Calibration
from ...metrics.explanation import Claims, Explained, explanation_report
from ...modes import preserved
from .answers import parse
from .decoders import Decoded
from .finding import Finding
from .model import ManipulationModel

AT_ONCE = 8  # pictures that a language model explains together


def explanation_scores(
    model: ManipulationModel, pictures: ManipulationSet, decoded: Decoded, calibration: Calibration, most: int
) -> dict[str, float]:
    """Compute ``explanation/NAME`` of a set, those that are defined; nothing where no picture is explained.

    Args:
        model: explains.
        pictures: the set.
        decoded: what its decoder said of all of them.
        calibration: from logits to verdicts.
        most: explained pictures that are scored; evenly over the set.
    """
    chosen = _chosen(pictures, most)
    sizes = [pictures.size(index) for index in chosen]
    findings = [model.finding(decoded, index, size, calibration) for index, size in zip(chosen, sizes, strict=True)]
    if model.explains:
        with preserved(model), torch.inference_mode():
            model.eval()
            for start in range(0, len(chosen), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                findings[part] = model.explain([pictures.image(index) for index in chosen[part]], findings[part])
    rows = [_explained(model, pictures, index, each) for index, each in zip(chosen, findings, strict=True)]
    report = explanation_report(rows) if rows else {}
    return {f"explanation/{name}": value for name, value in report.items() if value is not None}


def _chosen(pictures: ManipulationSet, most: int) -> list[int]:
    written = [index for index, record in enumerate(pictures.records) if record.label != REAL and record.explanation]
    reals = np.flatnonzero(pictures.labels == REAL).tolist()
    return sorted(index for group in (written, reals) for index in _evenly(group, min(most, len(written))))


def _evenly(indices: list[int], most: int) -> list[int]:
    if not indices or not most:
        return []
    return [indices[place] for place in np.unique(np.linspace(0, len(indices) - 1, most).astype(int))]


def _explained(model: ManipulationModel, pictures: ManipulationSet, index: int, finding: Finding) -> Explained:
    record, (height, width) = pictures.records[index], finding.heatmap.shape
    said = parse(finding.explanation, model.cues, width, height)
    return Explained(
        text=finding.explanation,
        reference=record.explanation,
        said=Claims(said.verdict, said.cues or (), said.boxes or ()),
        found=Claims(finding.verdict, [name for name, _ in finding.cues], list(finding.boxes)),
        edited=record.label != REAL,
    )
