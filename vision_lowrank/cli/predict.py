"""``vision-lowrank predict``: what a saved model says of pictures."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table
from rich.text import Text

from ..data.find_pictures import said
from ..errors import DataError
from ..files import write_text
from ..inference.predictor import predict_files
from ..inference.sources import InputFile, find_files
from ..tasks.about import read_about
from ..viz.text import csv_text
from .imports import without_collection
from .output import plain
from .tables import print_table

if TYPE_CHECKING:
    from ..tasks.saved import AdaptedModel, Row


NAMED = 24  # letters of a picture's path, or of a class, that are shown


def predict_command(
    artefact: Path,
    images: list[Path],
    json_path: Path | None,
    csv_path: Path | None,
    options: dict[str, Any],
    batch_size: int,
    skip_broken: bool,
    trust: bool = False,
) -> None:
    """Predict, then print a table or write the files asked for.

    Raises:
        UserError: the artefact, a picture or one of `options` cannot be used.
    """
    inputs = find_files(images, recursive=True)
    read_about(artefact)
    if inputs.left_out:
        print(plain(said(inputs.left_out)), file=sys.stderr)
    with without_collection():
        from ..tasks.saved import load_model  # torch, only now

    model = load_model(artefact, trust=trust)
    model.check_options(options)
    found = _predicted(model, inputs.sources, batch_size, options, skip_broken)
    rows = [{"image": str(source.path), **row.to_row()} for source, row in found]
    if json_path:
        write_text(json_path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    if csv_path:
        columns = [name for name, value in rows[0].items() if not isinstance(value, list)] if rows else ["image"]
        write_text(csv_path, csv_text([columns, *([row[name] for name in columns] for row in rows)]))
    if not (json_path or csv_path):
        print_table(_table(found))


def _predicted(
    model: AdaptedModel, sources: Sequence[InputFile], batch_size: int, options: dict[str, Any], skip_broken: bool
) -> list[tuple[InputFile, Row]]:
    """Return file and row of every picture, with a progress bar where there is much to do."""
    skip = (lambda problem: print(f"skipped: {plain(problem)}", file=sys.stderr)) if skip_broken else None
    batches = predict_files(model, sources, batch_size, options, skip)
    count = math.ceil(len(sources) / batch_size)
    quiet = count < 3 or not sys.stderr.isatty()
    try:
        return [pair for batch in track(batches, "predicting", count, disable=quiet) for pair in batch]
    except DataError as error:
        raise DataError(f"{error} Use --skip-broken to go on without it.") from None


def _table(found: Sequence[tuple[InputFile, Row]]) -> Table:
    """Make a table with one line a picture: what has no room is cut at its end, of a file's name at its beginning."""
    folder = os.path.commonpath([source.path.parent for source, _ in found]) if found else ""
    table = Table(title=Text(f"pictures in {folder}") if len(found) > 1 and folder else None, box=SIMPLE_HEAD)
    names = [plain(os.path.relpath(source.path, folder) if folder else str(source.path)) for source, _ in found]
    names = [name if len(name) <= NAMED else f"…{name[1 - NAMED :]}" for name in names]
    table.add_column("image", no_wrap=True, min_width=max(map(len, names), default=0))
    cells = [row.to_cells() for _, row in found]
    last = [*cells[0]][-1] if cells else ""
    for name in cells[0] if cells else ():
        is_share = all(each[name].endswith("%") for each in cells)
        least = 0 if name == last else min(NAMED, max(len(each[name]) for each in cells))
        justify = "right" if is_share else "left"
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", min_width=least)
    for shown, each in zip(names, cells, strict=True):
        table.add_row(Text(shown), *(Text(plain(value)) for value in each.values()))
    return table
