"""IMDL-BenCo's data sets: ManiDataset, JsonDataset, BalancedDataset and lists of test sets, read and written.

* ManiDataset: a folder with ``Tp/`` (edited pictures) and ``Gt/`` (masks). The toolkit pairs them by sorted order; here
  by stem (a mask may end in ``_gt``, ``_mask`` or ``_forged``), by order only where no stem fits, with a warning.
* JsonDataset: ``[["picture", "mask" | "Negative"], ...]``; "Negative" is a real picture. Paths start from the working
  directory, as in the toolkit, or else from the file's folder.
* BalancedDataset: ``[["ManiDataset" | "JsonDataset", "path"], ...]``; an epoch draws 1840 pictures from each.
* Test sets: ``{"name": "path", ...}``; a path that ends in ``.json`` is a JsonDataset, another one a ManiDataset.

"Negative", a mask file without white and label 0 are the same: a picture that was not edited. So masks are read once
when a set is opened; `check_masks=False` spares that and takes every picture with a mask for edited.

None of them says what an edit was made of: a picture is a source of its own. `source_pattern`, a regular expression
with one group, tells what twins share in their paths (Coverage: ``(\\d+)t?\\.tif``), and they stay in one split.

Source: IMDL-BenCo (arXiv 2406.10580), formats as of version 0.1.45.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import DataError, near_miss
from ...files import write_text
from ..images import listed
from .base import EDITED, REAL, ManipulationSet, PictureRecord
from .joined import JoinedSet, join, relocated
from .pairing import edited_masks, paired, some_pictures
from .regions import mask_of_boxes
from .schema import parsed

NEGATIVE, DRAWS = "Negative", 1840
CLASSES = ("ManiDataset", "JsonDataset")


def read_mani(
    folder: Path, name: str | None = None, check_masks: bool = True, source_pattern: str | None = None
) -> ManipulationSet:
    """Read a ManiDataset; ids are paths below the folder, such as ``Tp/1.png``.

    Raises:
        DataError: ``Tp`` or ``Gt`` is missing or empty, files have no partner (names them), a mask is damaged.
    """
    images, masks = some_pictures(folder, "Tp"), some_pictures(folder, "Gt")
    pairs = list(zip(images, paired(folder, images, masks), strict=True))
    return _set(name or folder.name, folder, pairs, check_masks, source_pattern)


def read_json(
    path: Path, name: str | None = None, check_masks: bool = True, source_pattern: str | None = None
) -> ManipulationSet:
    """Read a JsonDataset; ids are the pictures' paths as they are written.

    Raises:
        DataError: the file is no such list, lists a picture twice, or files are missing from both places where they
            may start.
    """
    rows = _pairs(path)
    files = [each for pair in rows for each in pair if each != NEGATIVE]
    return _set(name or path.stem, _base(path, files), rows, check_masks, source_pattern)


def read_imdl(
    path: Path, name: str | None = None, check_masks: bool = True, source_pattern: str | None = None
) -> ManipulationSet:
    """Read a JsonDataset where `path` ends in ``.json``, a ManiDataset otherwise."""
    read = read_json if path.suffix.lower() == ".json" else read_mani
    return read(path, name, check_masks, source_pattern)


def read_tests(path: Path, check_masks: bool = True) -> dict[str, ManipulationSet]:
    """Read the test sets of a list, by their display names.

    Raises:
        DataError: it is no such list, or one of the sets cannot be read.
    """
    listing = parsed(_content(path), f"'{path}'")
    if not isinstance(listing, dict) or not all(isinstance(each, str) for each in listing.values()):
        raise DataError(f"'{path}' is no list of test sets: it must be an object of names and paths.")
    base = _base(path, list(listing.values()))
    return {name: read_imdl(base / each, name, check_masks) for name, each in listing.items()}


def is_balanced(path: Path) -> bool:
    """Tell whether a JSON file is a BalancedDataset (its pairs begin with the name of a class)."""
    if path.suffix.lower() != ".json":
        return False
    rows = parsed(_content(path), f"'{path}'")
    return isinstance(rows, list) and _names_classes([row for row in rows if isinstance(row, list) and row])


def read_balanced(
    path: Path, draws: int = DRAWS, check_masks: bool = True, source_pattern: str | None = None
) -> JoinedSet:
    """Read a BalancedDataset: its sets joined, of which an epoch draws `draws` pictures each.

    Raises:
        DataError: it is no such list, or one of the sets cannot be read.
    """
    rows = _pairs(path)
    for kind, _ in rows:
        if kind not in CLASSES:
            raise DataError(f"'{path}': unknown class '{kind}'.{near_miss(kind, CLASSES)} Known: {', '.join(CLASSES)}.")
    base = _base(path, [each for _, each in rows])
    sets = [
        (read_mani if kind == "ManiDataset" else read_json)(base / each, _short(each), check_masks, source_pattern)
        for kind, each in rows
    ]
    return join(path.stem, sets, draws)


def write_json(path: Path, images: ManipulationSet) -> None:
    """Write a set as a JsonDataset whose paths start from the file's folder; masks of annotated boxes go beside it.

    Raises:
        DataError: edited pictures have neither mask nor boxes (names them).
    """
    rows = []
    for index, mask in enumerate(stored_masks(images, path.parent, f"{path.stem}_masks")):
        record = relocated(images.records[index], images.root, path.parent)
        rows.append([record.image, mask or NEGATIVE])
    write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def stored_masks(images: ManipulationSet, root: Path, folder: str) -> list[str | None]:
    """List the path, from `root`, of the mask file of every picture, None for a real one.

    Where only boxes are annotated they are filled, in PNG files below ``root/folder``.

    Raises:
        DataError: edited pictures have neither mask nor boxes (names them).
    """
    bare = [r.id for r in images.records if r.label != REAL and r.mask is None and r.boxes is None]
    if bare:
        raise DataError(
            f"{len(bare):,} edited pictures of '{images.name}' have neither mask nor boxes, {listed(bare)}: annotate "
            "them, or convert with --derive where their originals are known."
        )
    found: list[str | None] = []
    for index, record in enumerate(images.records):
        if record.label != REAL and record.mask is None:
            path = root / folder / f"{index:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask = mask_of_boxes((box.xyxy for box in record.boxes or ()), *images.size(index))
            Image.fromarray(mask).save(path)
            found.append(path.relative_to(root).as_posix())
        else:
            found.append(relocated(record, images.root, root).mask if record.label != REAL else None)
    return found


def _set(
    name: str, root: Path, pairs: Sequence[Sequence[str]], check_masks: bool, source_pattern: str | None
) -> ManipulationSet:
    masks = [mask for _, mask in pairs if mask != NEGATIVE]
    white = dict(zip(masks, edited_masks(root, masks), strict=True)) if check_masks else {}
    records = []
    for image, mask in pairs:
        edited = mask != NEGATIVE and white.get(mask, True)
        group = _group(image, source_pattern)
        kept = None if mask == NEGATIVE else mask
        label = EDITED if edited else REAL
        scope = "local" if edited else "unknown"
        records.append(PictureRecord(image, image, label, source_id=image, group=group, mask=kept, scope=scope))
    return ManipulationSet.of(name, records, root)


def _group(path: str, pattern: str | None) -> str | None:
    found = re.search(pattern, path) if pattern else None
    return found.group(1) if found else None


def _pairs(path: Path) -> list[list[str]]:
    rows: Any = parsed(_content(path), f"'{path}'")
    if not isinstance(rows, list) or not rows:
        raise DataError(f'\'{path}\' must be a list of pairs, [["picture", "mask" or "{NEGATIVE}"], ...].')
    for number, row in enumerate(rows):
        if not (isinstance(row, list) and len(row) == 2 and all(isinstance(each, str) and each for each in row)):
            raise DataError(f"'{path}' entry {number}: {json.dumps(row)[:60]} is no pair of texts.")
    if not _names_classes(rows):
        twice = [name for name, count in Counter(row[0] for row in rows).items() if count > 1]
        if twice:
            raise DataError(f"'{path}' lists {listed(twice)} more than once: keep one entry per picture.")
    return rows


def _names_classes(rows: Sequence[Sequence[str]]) -> bool:
    return any(row[0] in CLASSES for row in rows)


def _base(path: Path, files: Sequence[str]) -> Path:
    """Find where the paths in a JSON file start: the working directory or, failing that, the file's folder."""
    lacking = {}
    for base in (Path("."), path.parent):
        lacking[base] = [each for each in files if not (base / each).exists()]
        if not lacking[base]:
            return base
    base, absent = min(lacking.items(), key=lambda item: len(item[1]))
    raise DataError(
        f"'{path}' names {len(absent):,} files that exist neither from the working directory '{os.getcwd()}' nor from "
        f"'{path.parent}', such as {listed(absent)}: check the paths."
    )


def _content(path: Path) -> bytes:
    if not path.is_file():
        found = [each.name for each in path.parent.glob("*.json")] if path.parent.is_dir() else []
        raise DataError(f"file '{path}' does not exist.{near_miss(path.name, found)} Check the path.")
    return path.read_bytes()


def _short(path: str) -> str:
    """Shorten a path to a set's name: the folder, or the file without its ending."""
    return Path(path).stem if path.lower().endswith(".json") else Path(path).name
