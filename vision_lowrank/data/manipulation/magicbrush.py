"""MagicBrush's rows: ``img_id, turn_index, input_img, instruction, output_img``.

The input of turn 1 is the real picture; every output is an edit of it with the turn's instruction as prompt (the input
of a later turn is the output before). All turns of a picture share its source. A row's pictures are paths, or pictures
in memory as ``datasets`` gives them, which are stored below `root`; `source_img` and `target_img`, the names in the
published files, are taken for input and output. Their `mask_img` is not read: it shows the picture outside the mask, so
white there does not mean edited.

Source: MagicBrush (arXiv 2306.10012), https://github.com/OSU-NLP-Group/MagicBrush.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import DataError
from .base import EDITED, REAL, ManipulationSet, PictureRecord
from .schema import numbered, parsed

EDITOR = "dall-e-2"  # what made the set's edits


def read_magicbrush(path: Path, name: str | None = None) -> ManipulationSet:
    """Read a file of rows, JSON Lines or one JSON list, whose pictures are paths relative to it.

    Raises:
        DataError: the file is missing, or a row lacks a key.
    """
    if not path.is_file():
        raise DataError(f"file '{path}' does not exist: check the path.")
    if path.suffix.lower() == ".json":
        rows = parsed(path.read_bytes(), f"'{path}'")
    else:
        rows = [parsed(line, f"'{path}' line {number}") for number, line in numbered(path)]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"'{path}' must hold one object per row.")
    return ManipulationSet.of(name or path.stem, list(records_of_rows(rows, path.parent)), path.parent)


def records_of_rows(rows: Iterable[Mapping[str, Any]], root: Path) -> Iterator[PictureRecord]:
    """Convert rows in any order; an edit whose turn 1 is not among them names a source without a real picture.

    Args:
        rows: see the module docstring.
        root: where pictures in memory are stored, in ``images``; paths stay as they are.

    Raises:
        DataError: a row lacks a key, or a turn comes twice.
    """
    seen: set[str] = set()
    for row in rows:
        picture, turn = _value(row, "img_id"), int(_value(row, "turn_index"))
        source, key = f"{picture}-input", f"{picture}-output{turn}"
        if key in seen:
            raise DataError(f"MagicBrush row {picture}: turn {turn} comes twice.")
        seen.add(key)
        if turn == 1:
            yield PictureRecord(
                source, _stored(_value(row, "input_img", "source_img"), root, source), REAL, source_id=source
            )
        image = _stored(_value(row, "output_img", "target_img"), root, key)
        prompt = row.get("instruction")
        yield PictureRecord(key, image, EDITED, source_id=source, editor=EDITOR, editor_access="closed", prompt=prompt)


def _value(row: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise DataError(f"a row of MagicBrush has no '{names[0]}' (keys: {', '.join(row) or 'none'}).")


def _stored(picture: str | Image.Image, root: Path, name: str) -> str:
    """Return the path of a picture below `root`; one in memory is written as PNG first."""
    if isinstance(picture, str):
        return picture
    path = root / "images" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").save(path)
    return path.relative_to(root).as_posix()
