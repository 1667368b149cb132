"""From what a decoder said of a set of pictures to every metric, and to one row per picture for recomputing them.

Of each picture the rows keep what metrics are made of; the definitions are those of :mod:`vision_lowrank.metrics`:
``image_level`` (its names without prefix), ``cues``, ``localisation.pixels`` and ``localisation.boxes``. Slices are
``editor/NAME/…`` and ``category/NAME/…``, each against all real pictures of the set.

Boxes and maps are judged as the heads give them, whatever the verdict: a picture called real may have a box. Edits of
global scope take no part in localisation.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...data.boxes import Boxes
from ...data.manipulation.base import REAL, ManipulationSet, PictureRecord
from ...data.manipulation.robustness import Degradation
from ...engine.task import Outputs
from ...metrics.bootstrap import Interval, bootstrap
from ...metrics.calibration import Calibration
from ...metrics.cues import cue_report, most_frequent
from ...metrics.image_level import Slices, detection_report, expected_calibration_error, slice_report
from ...metrics.localisation.boxes import BoxOutcome, baseline_report, box_report, judge_boxes, mean_box
from ...metrics.localisation.pixels import pixel_report, pixel_row, pixel_values
from .decoders import Decoded, decode_boxes
from .model import ManipulationModel
from .pictures import boxes_of, truth_of

INTERVALS = ("auc", "balanced_accuracy", "pixel_f1", "pixel_iou", "box_union_iou", "box_ap50")


@dataclass(frozen=True)
class Priors:
    """What the training pictures alone tell: constants that a detector must beat.

    Attributes:
        box: (4,) xyxy, mean training box as shares of width and height; None without boxes.
        cue: (C,) 1 for the cue annotated most often.
    """

    box: np.ndarray | None
    cue: np.ndarray

    @classmethod
    def of(cls, pictures: ManipulationSet, cues: Sequence[str]) -> Priors:
        """Compute the constants of a training set."""
        edited = [record for record in pictures.records if record.label != REAL]
        boxed = [(index, boxes_of(record)) for index, record in enumerate(pictures.records) if record.label != REAL]
        known = [(boxes.xyxy, pictures.size(index)) for index, boxes in boxed if boxes]
        box = mean_box([each for each, _ in known], [size for _, size in known]) if known else None
        return cls(box, most_frequent([record.cues for record in edited], cues) if cues else np.zeros(0))


@dataclass
class Scores:
    """Everything about one set.

    Attributes:
        metrics: by name, those that are defined.
        slices: by ``editor`` or ``category``, then by name.
        rows: one per picture, plain values.
        parts: what :meth:`intervals` needs.
    """

    metrics: dict[str, float]
    slices: dict[str, Slices]
    rows: list[dict[str, Any]]
    parts: _Parts = field(repr=False)

    def intervals(self) -> dict[str, Interval]:
        """Compute 95 % bootstrap intervals over sources of the main metrics."""
        return bootstrap(self.parts.metrics, self.parts.sources)


@dataclass(frozen=True)
class _Parts:
    """Per picture what metrics are made of, N rows each."""

    p: np.ndarray
    edited: np.ndarray
    pixels: np.ndarray
    mapped: np.ndarray
    boxes: list[BoxOutcome]
    boxed: np.ndarray
    threshold: float
    sources: np.ndarray

    def metrics(self, rows: np.ndarray) -> Mapping[str, float | None]:
        mapped, boxed = rows[self.mapped[rows]], rows[self.boxed[rows]]
        found = detection_report(self.p[rows], self.edited[rows], self.threshold)
        found |= pixel_report(self.pixels[mapped], self.edited[mapped])
        found |= box_report([self.boxes[row] for row in boxed], self.edited[boxed])
        return {name: found[name] for name in INTERVALS}


def score(
    model: ManipulationModel,
    pictures: ManipulationSet,
    outputs: Outputs,
    calibration: Calibration,
    priors: Priors,
    degradation: Degradation | None = None,
) -> Scores:
    """Compute all metrics of one set.

    Args:
        model: whose outputs these are.
        pictures: the set.
        outputs: logit (N,), cues (N, C), boxes (N, K, 4), objectness (N, K), tokens (N, n), valid (N, n), in its order.
        calibration: temperature and threshold, from validation pictures.
        priors: of the training set.
        degradation: what was done to the pictures before they were seen.
    """
    decoded = decoded_of(outputs)
    records = [pictures.records[index] for index in range(len(pictures))]
    p = calibration.probability(decoded.logit).numpy()
    edited = pictures.labels != REAL
    judged = [_judged(model, decoded, pictures, index, degradation) for index in range(len(pictures))]
    parts = _Parts(
        p=p,
        edited=edited,
        pixels=np.stack([each.pixels for each in judged]),
        mapped=np.array([each.mapped for each in judged]),
        boxes=[each.boxes for each in judged],
        boxed=np.array([each.boxed for each in judged]),
        threshold=calibration.threshold,
        sources=pictures.sources.codes,
    )
    likely = decoded.cues.double().sigmoid().numpy()
    cues = [record.cues if record.label != REAL else None for record in records]
    found: dict[str, float | None] = {}
    # A threshold above 1 means that nothing is called edited.
    found |= detection_report(p, edited, parts.threshold)
    found["ece_before"] = expected_calibration_error(decoded.logit.double().sigmoid().numpy(), edited)
    found |= pixel_report(parts.pixels[parts.mapped], edited[parts.mapped])
    found |= box_report([box for box, own in zip(parts.boxes, parts.boxed, strict=True) if own], edited[parts.boxed])
    if model.cues:
        found |= cue_report(likely, cues, model.cues, frequent=priors.cue)
    if priors.box is not None:
        found |= _baselines(judged, parts, priors.box)
    slices = {
        name: slice_report(p, edited, column.codes, column.names, parts.threshold)
        for name, column in (("editor", pictures.editors), ("category", pictures.categories))
    }
    for kind, report in slices.items():
        for name, entry in report.items():
            found |= {f"{kind}/{name}/{metric}": entry[metric] for metric in ("recall", "auc")}  # type: ignore[misc]
    metrics = {name: float(value) for name, value in found.items() if value is not None}
    rows = [
        _row(record, float(p[i]), calibration, judged[i], likely[i], model.cues) for i, record in enumerate(records)
    ]
    return Scores(metrics, slices, rows, parts)


def decoded_of(outputs: Outputs) -> Decoded:
    """Return the outputs of a whole set as what a decoder says."""
    tokens = outputs.get("tokens")
    return Decoded(outputs["logit"], outputs["cues"], outputs["boxes"], outputs["objectness"], tokens, outputs["valid"])


@dataclass(frozen=True)
class _Judged:
    """One picture: pixel statistics and box outcome, whether they count, and the boxes that were found."""

    pixels: np.ndarray
    mapped: bool
    boxes: BoxOutcome
    boxed: bool
    found: list[list[float]]
    truth: np.ndarray
    size: tuple[int, int]


def _judged(
    model: ManipulationModel,
    decoded: Decoded,
    pictures: ManipulationSet,
    index: int,
    degradation: Degradation | None,
) -> _Judged:
    record = pictures.records[index]
    size = pictures.size(index)
    mask, truth = truth_of(pictures, index, size)
    if degradation is not None:
        mask, truth = degradation.apply_truth(mask, truth, *size)
        size = degradation.size(*size)
    width, height = size
    local = record.label == REAL or record.scope != "global"
    every = decode_boxes(decoded.boxes[index], decoded.objectness[index], width, height, min_score=0.0)
    found = every[every.scores >= 0.5]
    heat = model.heat(decoded, index, found, width, height)
    wanted = np.zeros((height, width), dtype=bool) if mask is None else mask
    corners = (truth or Boxes()).xyxy
    return _Judged(
        pixels=pixel_row(heat, wanted),
        mapped=local and mask is not None,
        boxes=judge_boxes(every.xyxy, every.scores, corners, size),
        boxed=local and truth is not None,
        found=[[round(value, 1) for value in box] for box in found],
        truth=corners,
        size=size,
    )


def _baselines(judged: Sequence[_Judged], parts: _Parts, box: np.ndarray) -> dict[str, float | None]:
    """Compute the localisation metrics of boxes that ignore the picture."""
    own = [each for each in judged if each.boxed]
    report = baseline_report([each.truth for each in own], [each.size for each in own], parts.edited[parts.boxed], box)
    kept = ("box_union_iou", "box_matched_iou", "box_ap50")
    return {name: value for name, value in report.items() if name.endswith(kept)}


def _row(
    record: PictureRecord, p: float, calibration: Calibration, judged: _Judged, likely: np.ndarray, cues: Sequence[str]
) -> dict[str, Any]:
    counted = record.label != REAL
    values = {name: float(each[0]) for name, each in pixel_values(judged.pixels[None]).items()} if counted else {}
    joined = judged.boxes.predicted + judged.boxes.annotated - judged.boxes.both
    return {
        "id": record.id,
        "source_id": record.source_id,
        "label": record.label,
        "editor": record.editor,
        "category": record.category,
        "probability": round(p, 6),
        "verdict": calibration.verdict(p),
        "boxes": judged.found,
        "box_iou": round(judged.boxes.both / joined, 4) if counted and judged.boxed and joined else None,
        "pixel_f1": round(values["f1"], 4) if judged.mapped and not np.isnan(values.get("f1", np.nan)) else None,
        "cues": [name for name, value in zip(cues, likely, strict=True) if value >= 0.5],
    }


def write_pictures(path: Path, scores: Mapping[str, Scores]) -> None:
    """Write one CSV row per picture of every set, from which any number can be computed again; lists are JSON.

    No file is written where there are no pictures.
    """
    rows = [{"set": name, **row} for name, found in scores.items() for row in found.rows]
    if not rows:
        return
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(
            {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()} for row in rows
        )


def details(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Return intervals and slices of every set as it is, without its degraded forms."""
    return {
        name: {
            "intervals": {metric: asdict(interval) for metric, interval in found.intervals().items()},
            "slices": found.slices,
        }
        for name, found in scores.items()
        if name.count("/") == 1
    }
