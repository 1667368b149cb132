"""``results.json`` and ``results.csv``.

In the CSV lists are one cell, their entries separated by ``; ``. File names and texts may come from strangers: a cell
that a spreadsheet would run as a formula, as it starts with ``=``, ``+``, ``-`` or ``@``, gets an apostrophe before it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from .journal import ScanRow, as_json

COLUMNS = (
    "path", "verdict", "probability", "regions", "boxes", "cues", "explanation", "explained_by", "width", "height",
    "format", "sha256", "seconds", "heatmap", "overlay", "npy", "warnings", "error",
)  # fmt: skip


def write_json(path: Path, header: Mapping[str, Any], rows: Sequence[ScanRow]) -> None:
    """Write ``{"header": {…}, "rows": [{…}, …]}``, the keys of a row as in :class:`ScanRow`."""
    write_text(path, as_json({"header": header, "rows": [row.to_dict() for row in rows]}, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[ScanRow]) -> None:
    """Write one line per row under :data:`COLUMNS`, empty where nothing is known."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = {**row.to_dict(), **_lists(row)}
        writer.writerow([_cell(values[name]) for name in COLUMNS])
    write_text(path, buffer.getvalue().encode("utf-8", "backslashreplace").decode())


def _lists(row: ScanRow) -> dict[str, Any]:
    boxes = (f"{' '.join(f'{edge:g}' for edge in box['xyxy'])} ({box['score']:.3f})" for box in row.boxes)
    return {
        "regions": None if row.error else len(row.boxes),
        "boxes": "; ".join(boxes),
        "cues": "; ".join(f"{cue['name']} ({cue['prob']:.3f})" for cue in row.cues),
        "warnings": "; ".join(row.warnings),
    }


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value
