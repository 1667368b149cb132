"""SID-Set: real, fully synthetic and tampered pictures.

Folders ``{train,validation}/{real,full_synthetic,tampered,masks}``; the mask of a tampered picture has its stem. The
set's rows, ``img_id, image, mask, width, height, label``, number the labels 0 real, 1 fully synthetic, 2 tampered: here
1 is edited and 2 synthetic. The link from a tampered picture to its original is not published: each is a source of its
own. ``validation`` is the test set, for nothing may be selected on it; a tenth of train validates.

Source: SIDA (Huang et al., 2024), https://github.com/hzlsaber/SIDA.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ...config.marks import Folder
from ...errors import DataError
from ...registry import register
from ..images import listed
from .base import EDITED, REAL, SYNTHETIC, ManipulationSet, ManipulationSplits, PictureRecord
from .imdl import stored_masks
from .options import HeldOut, splits_of
from .pairing import by_mask_key, copied, mask_key, pictures_under

HOME = "https://github.com/hzlsaber/SIDA"
FOLDERS = {"real": REAL, "full_synthetic": SYNTHETIC, "tampered": EDITED}
LABELS = {0: REAL, 1: SYNTHETIC, 2: EDITED}  # theirs -> ours
PARTS = {"train": "train", "validation": "test"}


class SidSetConfig(HeldOut):
    """Options of ``data: {type: sid_set}``."""

    type: Literal["sid_set"] = "sid_set"
    root: Folder = Field(description="folder that holds `train` and `validation`")
    synthetic: bool = Field(True, description="keep fully synthetic pictures, label 2: they need three classes")


@register(
    "data",
    "sid_set",
    summary="SID-Set: real, fully synthetic and tampered pictures",
    config=SidSetConfig,
    gives="edits",
)
def sid_set(config: SidSetConfig) -> ManipulationSplits:
    """Read train and val from ``train``; the test set is ``validation``.

    Raises:
        DataError: a folder is missing, or tampered pictures and masks do not pair (names them).
    """
    root = Path(config.root).expanduser()
    parts = {ours: read_sid(root, theirs) for theirs, ours in PARTS.items()}
    if not config.synthetic:
        parts = {name: each.subset(np.flatnonzero(each.labels != SYNTHETIC)) for name, each in parts.items()}
    return splits_of(parts, config)


def read_sid(root: Path, part: str = "train") -> ManipulationSet:
    """Read ``train`` or ``validation``; ids are paths such as ``train/real/1.jpg``.

    Raises:
        DataError: the part is missing or empty, or tampered pictures and masks do not pair (names them).
    """
    if not (root / part).is_dir():
        raise DataError(f"'{root}' has no folder '{part}': unpack SID-Set there, see {HOME}.")
    present = [folder for folder in FOLDERS if (root / part / folder).is_dir()]
    images = {folder: pictures_under(root / part, folder) for folder in present}
    if not any(images.values()):
        raise DataError(f"'{root / part}' has no pictures in {', '.join(FOLDERS)}: unpack SID-Set there, see {HOME}.")
    masks = by_mask_key(pictures_under(root / part, "masks") if (root / part / "masks").is_dir() else [])
    tampered = by_mask_key(images.get("tampered", []))
    lonely = [path for key, path in tampered.items() if key not in masks]
    lonely += [path for key, path in masks.items() if key not in tampered]
    if lonely:
        raise DataError(f"'{root / part}': tampered pictures and masks do not pair: {listed(lonely, 10)}.")
    split = PARTS[part]
    records = []
    for folder, paths in images.items():
        for path in paths:
            name, label = f"{part}/{path}", FOLDERS[folder]
            mask = f"{part}/{masks[mask_key(path)]}" if label == EDITED else None
            scope = "local" if label == EDITED else "global" if label == SYNTHETIC else "unknown"
            records.append(PictureRecord(name, name, label, source_id=name, mask=mask, scope=scope, split=split))
    return ManipulationSet.of(part, records, root)


def read_sid_parts(root: Path) -> ManipulationSet:
    """Read both parts as one set whose records name their splits."""
    records = [record for part in PARTS if (root / part).is_dir() for record in read_sid(root, part).records]
    if not records:
        raise DataError(f"'{root}' has neither 'train' nor 'validation': unpack SID-Set there, see {HOME}.")
    return ManipulationSet.of(root.name, records, root)


def write_sid(root: Path, images: ManipulationSet) -> None:
    """Copy a set into SID-Set's folders: pictures of split val and test into ``validation``, all others into train.

    Raises:
        DataError: edited pictures have neither mask nor boxes, or `root` has pictures already.
    """
    if any((root / part).exists() for part in PARTS):
        raise DataError(f"'{root}' has pictures already: give a new folder.")
    names = {label: folder for folder, label in FOLDERS.items()}
    edited = np.flatnonzero(images.labels == EDITED)
    masks = dict(zip(edited.tolist(), stored_masks(images.subset(edited), root, ".filled"), strict=True))
    for index, record in enumerate(images.records):
        part = root / ("validation" if record.split in ("val", "test") else "train")
        copied(images.root / record.image, part / names[record.label] / f"{index:06d}")
        if masks.get(index):
            copied(root / str(masks[index]), part / "masks" / f"{index:06d}")
    shutil.rmtree(root / ".filled", ignore_errors=True)


def records_of_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[PictureRecord]:
    """Convert the set's rows to records, with `image` and `mask` as paths.

    Raises:
        DataError: a label is none of theirs.
    """
    for row in rows:
        if row.get("label") not in LABELS:
            raise DataError(f"row '{row.get('img_id')}': label {row.get('label')!r} is none of SID-Set's 0, 1 and 2.")
        key, label = str(row["img_id"]), LABELS[row["label"]]
        size = {"width": row.get("width"), "height": row.get("height")}
        yield PictureRecord(key, row["image"], label, source_id=key, mask=row.get("mask") or None, **size)


def rows_of_records(records: Iterable[PictureRecord]) -> Iterator[dict[str, Any]]:
    """Convert records to the set's rows; keys as theirs, null where nothing is known."""
    theirs = {ours: label for label, ours in LABELS.items()}
    for record in records:
        yield {
            "img_id": record.id,
            "image": record.image,
            "mask": record.mask if record.label == EDITED else None,
            "width": record.width,
            "height": record.height,
            "label": theirs[record.label],
        }
