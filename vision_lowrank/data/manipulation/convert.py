"""Other layouts to the schema and back; pictures are never re-encoded.

``FORMAT``: ``imdl-json`` (a JsonDataset file), ``imdl-folder`` (``Tp``/``Gt``), ``sid-set``, ``folders``
(``real``/``edited``/``masks``), ``coco`` (annotations and an ``images`` folder beside, only to the schema),
``magicbrush`` (rows, only to the schema). Where OUT ends in ``.jsonl`` the schema is written, and its paths lead to the
pictures where they are; otherwise IN is a file of the schema and pictures are copied (JsonDataset: only named).

With `derive`, edited pictures without boxes get those of their mask, and those without a mask whose original is known
get the mask of the pair's difference, ``annotator: auto`` (see :mod:`~.pair_masks`), in ``masks_auto`` beside OUT.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import DataError, near_miss
from .base import EDITED, REAL, ManipulationSet, PictureRecord
from .coco_boxes import read_coco
from .folders import read_folders, write_folders
from .imdl import read_json, read_mani, stored_masks, write_json
from .joined import relocated
from .magicbrush import read_magicbrush
from .pair_masks import annotated, pair_difference
from .pairing import copied
from .regions import with_boxes
from .schema import read_schema, write_schema
from .sid_set import read_sid_parts, write_sid

Watch = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class Format:
    """A layout.

    Attributes:
        read: path -> set.
        write: (path, set) -> None; None where only reading makes sense.
    """

    read: Callable[[Path], ManipulationSet]
    write: Callable[[Path, ManipulationSet], None] | None = None


def write_mani(root: Path, images: ManipulationSet) -> None:
    """Copy the edited pictures into ``Tp`` and their masks into ``Gt``; real ones have no place there.

    Raises:
        DataError: there are none, some have neither mask nor boxes, or `root` has pictures already.
    """
    edited = images.subset(np.flatnonzero(images.labels == EDITED))
    if not len(edited):
        raise DataError(f"'{images.name}' has no edited pictures: folders Tp and Gt hold nothing else.")
    if (root / "Tp").exists() or (root / "Gt").exists():
        raise DataError(f"'{root}' has pictures already: give a new folder.")
    for index, mask in enumerate(stored_masks(edited, root, ".filled")):
        copied(edited.root / edited.records[index].image, root / "Tp" / f"{index:06d}")
        copied(root / str(mask), root / "Gt" / f"{index:06d}_gt")
    shutil.rmtree(root / ".filled", ignore_errors=True)


FORMATS = {
    "imdl-json": Format(read_json, write_json),
    "imdl-folder": Format(read_mani, write_mani),
    "sid-set": Format(read_sid_parts, write_sid),
    "folders": Format(read_folders, write_folders),
    "coco": Format(lambda path: read_coco(path, path.parent / "images")),
    "magicbrush": Format(read_magicbrush),
}


def convert(name: str, source: Path, target: Path, derive: bool = False, watch: Watch = iter) -> ManipulationSet:
    """Read `source` and write `target`, one of them in the schema.

    Args:
        name: the other one's format.
        source: what to read.
        target: what to write; ends in ``.jsonl`` for the schema.
        derive: fill in masks and boxes, only towards the schema.
        watch: wraps the indices of the pictures, to show progress.

    Returns:
        What was read.

    Raises:
        DataError: the format is unknown or only read, or `source` cannot be read.
    """
    if name not in FORMATS:
        raise DataError(f"unknown format '{name}'.{near_miss(name, FORMATS)} Known: {', '.join(FORMATS)}.")
    form = FORMATS[name]
    if target.suffix.lower() == ".jsonl":
        images = form.read(source)
        write_schema(target, _moved(images, target.parent, derive, watch), images.vocabulary)
    elif form.write is None:
        raise DataError(f"format '{name}' can only be read: give an output file that ends in .jsonl.")
    elif derive:
        raise DataError("--derive fills in the schema: convert to a .jsonl file with it first.")
    else:
        images = read_schema(source)
        form.write(target, images)
    return images


def _moved(images: ManipulationSet, root: Path, derive: bool, watch: Watch) -> Iterator[PictureRecord]:
    names, real = images.sources.names, np.flatnonzero(images.labels == REAL)
    originals = {names[images.sources.codes[index]]: int(index) for index in real[::-1]}
    fill = partial(_derived, images, originals, root) if derive else None
    for index in watch(range(len(images))):
        record = relocated(images.records[index], images.root, root)
        yield fill(index, record) if fill and record.label != REAL else record


def _derived(
    images: ManipulationSet, originals: dict[str, int], root: Path, index: int, record: PictureRecord
) -> PictureRecord:
    """Return `record`, whose paths start from `root`, with a mask and boxes where they can be had."""
    mask = images.mask(index)
    if mask is not None:
        return with_boxes(record, mask)
    original = originals.get(record.source_id)
    if record.boxes is not None or original is None:
        return record
    difference = pair_difference(images.image(original), images.image(index))
    record = annotated(record, difference, f"masks_auto/{index:06d}.png")
    if record.mask is not None and difference.mask is not None:
        (root / record.mask).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(difference.mask).save(root / record.mask)
    return record
