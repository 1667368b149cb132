"""``vision-lowrank predict``: classify pictures with a saved artefact."""

from __future__ import annotations

import glob
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import track
from rich.table import Table

from ..data.images import SUFFIXES, read_image
from ..errors import DataError
from ..files import write_text
from .checks import check_artefact
from .tables import print_table

if TYPE_CHECKING:
    import torch

    from ..tasks.classification.classifier import ImageClassifier


def predict_command(
    artefact: Path,
    images: list[str],
    json_path: Path | None,
    csv_path: Path | None,
    top: int,
    batch_size: int,
    skip_broken: bool,
) -> None:
    """Predict, then print a table or write the files asked for."""
    paths = find_images(images)
    check_artefact(artefact)
    from ..tasks.classification.classifier import ImageClassifier  # torch, only now
    from ..viz.text import csv_text

    classifier = ImageClassifier.load(artefact)
    rows = predict(classifier, paths, top, batch_size, skip_broken)
    if json_path:
        write_text(json_path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    if csv_path:
        columns = ["image", "class", "probability"]
        write_text(csv_path, csv_text([columns, *([row[name] for name in columns] for row in rows)]))
    if not (json_path or csv_path):
        print_table(_table(rows))


def find_images(patterns: list[str]) -> list[Path]:
    """Pictures named by paths, folders (searched through) and globs, sorted within each pattern.

    Raises:
        DataError: a pattern that names nothing, or a folder without pictures.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        else:
            matches = [path] if path.is_file() else sorted(Path(match) for match in glob.glob(pattern, recursive=True))
        if not matches:
            kind = f"no pictures ({', '.join(sorted(SUFFIXES))})" if path.is_dir() else "no such file, folder or match"
            raise DataError(f"{pattern}: {kind}.")
        found += matches
    return found


def predict(
    classifier: ImageClassifier, paths: list[Path], top: int = 3, batch_size: int = 64, skip_broken: bool = False
) -> list[dict[str, Any]]:
    """One row per readable picture: ``{"image", "class", "probability", "top": [[class, probability], …]}``.

    Raises:
        DataError: a file is no readable picture and `skip_broken` is off.
    """
    from torch import stack

    transform, rows = classifier.backbone.transform, []
    starts = range(0, len(paths), batch_size)
    for start in track(starts, "predicting", disable=len(starts) < 3 or not sys.stderr.isatty()):
        names, pixels = [], []
        for path in paths[start : start + batch_size]:
            try:
                pixels.append(transform(read_image(path)))
                names.append(str(path))
            except DataError as error:
                if not skip_broken:
                    raise DataError(f"{error} Use --skip-broken to go on without it.") from None
                print(f"skipped: {error}", file=sys.stderr)
        if names:
            rows += _rows(classifier, names, stack(pixels), top)
    return rows


def _rows(classifier: ImageClassifier, names: list[str], pixels: torch.Tensor, top: int) -> list[dict[str, Any]]:
    values, classes = classifier.probabilities(pixels).topk(min(top, len(classifier.classes)))
    rows = []
    for name, probabilities, labels in zip(names, values.tolist(), classes.tolist(), strict=True):
        ranked = [[classifier.classes[label], round(p, 6)] for label, p in zip(labels, probabilities, strict=True)]
        rows.append({"image": name, "class": ranked[0][0], "probability": ranked[0][1], "top": ranked})
    return rows


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("then", overflow="fold")
    for row in rows:
        others = ", ".join(f"{name} {100 * p:.0f}%" for name, p in row["top"][1:])
        table.add_row(row["image"], row["class"], f"{100 * row['probability']:.1f}%", others)
    return table
