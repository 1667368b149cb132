"""Pictures with what the detector found in them, for people: ``gallery.json`` of a seed, groups by a fixed rule each.

    hits                 edited and called edited: spread evenly from the surest to the least sure
    worst localisations  of the hits those with the lowest pixel F1, or box IoU where there is no mask
    misses               edited and called real, the lowest probability first
    false alarms         real and called edited, the highest probability first

over all test sets as they are; a source is in a group once, by its first picture. Nobody picks, and the failures are
among them. The file is a list of groups::

    title, rule, count (pictures of this kind)
    pictures      set, id, editor, verdict, probability, quality and what it measures (pixel F1 or box IoU), image

where `image` is a data URI of at most 160 pixels a side: the picture under the heat map and boxes that a scan would
show (:mod:`vision_lowrank.viz.overlay`), what was really edited outlined in magenta.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

from ...data.boxes import Boxes
from ...data.manipulation.base import REAL, ManipulationSet
from ...data.manipulation.regions import mask_of_boxes
from ...files import write_text
from ...viz.encoding import data_uri, encode_jpeg
from ...viz.overlay import overlay
from .model import ManipulationModel
from .pictures import boxes_of
from .scoring import Scores

EACH, SIDE = 6, 160
OUTLINE = (255, 46, 147)

Candidate: TypeAlias = tuple[str, int, Mapping[str, Any]]  # set, index in it, its row


def write_gallery(
    folder: Path,
    model: ManipulationModel,
    pictures: Mapping[str, ManipulationSet],
    scores: Mapping[str, Scores],
) -> None:
    """Write ``gallery.json``; `model` is left in evaluation mode.

    Args:
        folder: of the seed.
        model: looks at the chosen pictures again, one at a time.
        pictures: test sets by name.
        scores: of them, by ``test/NAME``; others, such as those of degraded pictures, take no part.
    """
    model.eval()
    chosen = choose([(name, index, row) for name in pictures for index, row in _rows(scores, name)])
    groups = [
        {
            "title": title,
            "rule": rule,
            "count": count,
            "pictures": [_example(model, pictures[place[0]], *place) for place in picked],
        }
        for title, rule, count, picked in chosen
    ]
    write_text(folder / "gallery.json", json.dumps(groups, ensure_ascii=False) + "\n")


def choose(candidates: Sequence[Candidate]) -> list[tuple[str, str, int, list[Candidate]]]:
    """Return (title, rule, number of such pictures, at most six of them) of every group of the module docstring."""
    hits = _ranked(candidates, "edited", True, -1)
    placed = sorted((c for c in hits if _quality(c)[0] is not None), key=lambda c: _quality(c)[0])
    misses, alarms = _ranked(candidates, "real", True, 1), _ranked(candidates, "edited", False, -1)
    even = _sources_once(hits)
    spread = np.unique(np.linspace(0, len(even) - 1, min(EACH, len(even))).round().astype(int))
    rules = (
        "edited pictures called edited, spread evenly from the surest to the least sure",
        "of these, the lowest pixel F1 (box IoU where there is no mask) first",
        "edited pictures called real, the lowest probability first",
        "real pictures called edited, the highest probability first",
    )
    return [
        ("Hits", rules[0], len(hits), [even[place] for place in spread]),
        ("Worst localisations", rules[1], len(placed), _sources_once(placed)[:EACH]),
        ("Misses", rules[2], len(misses), _sources_once(misses)[:EACH]),
        ("False alarms", rules[3], len(alarms), _sources_once(alarms)[:EACH]),
    ]


def drawn(image: Image.Image, heat: np.ndarray, boxes: Boxes, mask: np.ndarray | None) -> Image.Image:
    """Draw the picture at most 160 pixels a side, under heat map and boxes, its true mask (H, W) bool outlined."""
    scale = min(1.0, SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = np.asarray(Image.fromarray(np.asarray(heat, dtype=np.float32)).resize(size, Image.Resampling.BILINEAR))
    shown = np.array(overlay(image.resize(size, Image.Resampling.LANCZOS), small, boxes.resize(size), ""))
    if mask is not None and mask.any():
        part = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
        inside = np.asarray(part) > 0
        shown[binary_dilation(inside, iterations=2) & ~inside] = OUTLINE
    return Image.fromarray(shown)


def _rows(scores: Mapping[str, Scores], name: str) -> list[tuple[int, Mapping[str, Any]]]:
    found = scores.get(f"test/{name}")
    return list(enumerate(found.rows)) if found else []


def _ranked(candidates: Sequence[Candidate], verdict: str, edited: bool, sign: int) -> list[Candidate]:
    """Return those of a verdict and a truth, sorted by their probability, ascending for sign 1."""
    own = [c for c in candidates if c[2]["verdict"] == verdict and (c[2]["label"] != REAL) == edited]
    return sorted(own, key=lambda c: sign * c[2]["probability"])


def _sources_once(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the first picture of every source of a set."""
    first: dict[tuple[str, str], Candidate] = {}
    for candidate in candidates:
        first.setdefault((candidate[0], candidate[2]["source_id"]), candidate)
    return list(first.values())


def _quality(candidate: Candidate) -> tuple[float | None, str]:
    """Return how well the edit was localised, and by what measure."""
    row = candidate[2]
    return (row["box_iou"], "box IoU") if row["pixel_f1"] is None else (row["pixel_f1"], "pixel F1")


def _example(
    model: ManipulationModel, pictures: ManipulationSet, name: str, index: int, row: Mapping[str, Any]
) -> dict[str, Any]:
    image = pictures.image(index)
    finding = model.predict([image])[0]
    picture = drawn(image, finding.heatmap, finding.boxes, _truth(pictures, index, image.size))
    quality, measure = _quality((name, index, row))
    return {
        "set": name,
        **{key: row[key] for key in ("id", "editor", "verdict", "probability")},
        "quality": quality,
        "measure": measure,
        "image": data_uri(encode_jpeg(picture, 85)),
    }


def _truth(pictures: ManipulationSet, index: int, size: tuple[int, int]) -> np.ndarray | None:
    """Return the mask, or the boxes as one; None where neither is annotated."""
    mask, boxes = pictures.mask(index), boxes_of(pictures.records[index])
    return mask_of_boxes(boxes, *size) if mask is None and boxes is not None else mask
