"""What a classifier's evaluation gives beside its metrics: what is taken for what, and the worst mistakes, as JSON.

The section of the report reads both files (:mod:`vision_lowrank.viz.sections.classification`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.base import ImageSet
from ...engine.task import Outputs
from ...files import write_text
from ...metrics.classification import confusion_matrix
from ...viz.encoding import data_uri, encode_png

WORST_MISTAKES = 24
_THUMBNAIL = (96, 96)  # pixels


def write_confusion(path: Path, classes: Sequence[str], tests: Mapping[str, Outputs]) -> None:
    """Write ``{"classes": names, "confusion": {set: (C, C) counts, row = true class}}``.

    Args:
        path: the file.
        classes: C names.
        tests: name of a set -> its ``logits`` (N, C) and ``label`` (N,).
    """
    matrices = {name: confusion_matrix(each["logits"], each["label"]).tolist() for name, each in tests.items()}
    _write(path, {"classes": list(classes), "confusion": matrices})


def write_mistakes(path: Path, images: Mapping[str, ImageSet], tests: Mapping[str, Outputs]) -> None:
    """Write the most confident wrong predictions of all test sets, worst first, as rows with a thumbnail.

    Args:
        path: the file.
        images: name of a set -> its pictures.
        tests: name of a set -> its ``logits`` (N, C), ``label`` (N,) and ``index`` (N,) of the pictures.
    """
    worst = sorted(((p, name, row) for name, out in tests.items() for p, row in _wrong(out)), key=lambda each: -each[0])
    _write(path, [_mistake(images[name], name, tests[name], row, p) for p, name, row in worst[:WORST_MISTAKES]])


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, ensure_ascii=False) + "\n")


def _wrong(outputs: Outputs) -> list[tuple[float, int]]:
    """Return (confidence, row) of every wrong prediction of one set."""
    confidence, predicted = outputs["logits"].float().softmax(dim=-1).max(dim=-1)
    rows = (predicted != outputs["label"]).nonzero().flatten().tolist()
    return [(confidence[row].item(), row) for row in rows]


def _mistake(images: ImageSet, name: str, outputs: Outputs, row: int, probability: float) -> dict[str, Any]:
    index = int(outputs["index"][row])
    return {
        "set": name,
        "key": images.keys[index],
        "true": images.classes[images.labels[index]],
        "predicted": images.classes[int(outputs["logits"][row].argmax())],
        "probability": round(probability, 4),
        "image": _thumbnail(images, index),
    }


def _thumbnail(images: ImageSet, index: int) -> str:
    """Return a small copy of the picture as a data URI."""
    picture = images.image(index)
    picture.thumbnail(_THUMBNAIL)
    return data_uri(encode_png(picture), "png")
