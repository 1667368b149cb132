"""Plain folders ``real/``, ``edited/`` and perhaps ``masks/``.

* An edit's original is the real picture whose stem it has or begins with: ``real/a1.jpg`` for ``edited/a1.png``,
  ``edited/a1_e3.png`` and ``edited/a1-2.png``. An edit without one is a source of its own.
* A folder below ``edited`` names the editor: ``edited/firefly/a1.png``.
* A mask has the edit's path below ``masks``, any picture ending, and perhaps ``_mask`` or ``_gt`` after its stem; an
  edit may have none. A mask without its edit is an error.

Ids are paths, such as ``real/a1.jpg``. What else lies there is in the set's notes.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from ...config.marks import Folder
from ...errors import DataError
from ...registry import register
from ..find_pictures import find_pictures, said
from ..images import listed
from .base import EDITED, REAL, SYNTHETIC, ManipulationSet, ManipulationSplits, PictureRecord
from .imdl import stored_masks
from .options import HeldOut, read_parts, splits_of
from .pairing import by_mask_key, copied, mask_key, original_of, pictures_under, some_pictures

FOLDERS = ("real", "edited", "masks")


class EditedFoldersConfig(HeldOut):
    """Options of ``data: {type: edited_folders}``."""

    type: Literal["edited_folders"] = "edited_folders"
    root: Folder = Field(
        description="folder with `real`, `edited` and perhaps `masks`, split by source; or of such folders "
        "named train, test and perhaps val, or as usual instead"
    )


@register(
    "data",
    "edited_folders",
    summary="pictures in folders real, edited and perhaps masks",
    config=EditedFoldersConfig,
    gives="edits",
)
def edited_folders(config: EditedFoldersConfig) -> ManipulationSplits:
    """Load the splits of a tree.

    Raises:
        DataError: a folder is missing or empty, or a mask has no edit.
    """
    root = Path(config.root).expanduser()
    parts = read_parts(root, "", read_folders) if root.is_dir() else {}
    return splits_of(parts or read_folders(root), config)


def read_folders(root: Path, name: str | None = None) -> ManipulationSet:
    """Read one such tree.

    Raises:
        DataError: ``real`` or ``edited`` is missing or empty, two real pictures share a stem, or a mask has no edit.
    """
    real, edited = some_pictures(root, "real"), some_pictures(root, "edited")
    masks = by_mask_key(pictures_under(root, "masks") if (root / "masks").is_dir() else [])
    stems: dict[str, str] = {}
    for path in real:
        stem = PurePosixPath(path).stem
        if stems.setdefault(stem, path) != path:
            raise DataError(f"'{root}': '{stems[stem]}' and '{path}' have one stem: rename one, edits go by stems.")
    keys = {mask_key(path) for path in edited}
    lonely = [path for key, path in masks.items() if key not in keys]
    if lonely:
        raise DataError(f"'{root}': {len(lonely):,} masks have no edited picture, {listed(lonely, 10)}: remove them.")
    records = [PictureRecord(path, path, REAL, source_id=path) for path in real]
    for path in edited:
        original = original_of(PurePosixPath(path).stem, stems)
        below = PurePosixPath(path).parts[1:-1]
        records.append(
            PictureRecord(
                path,
                path,
                EDITED,
                source_id=original or path,
                source_image=original,
                editor=below[0] if below else None,
                mask=masks.get(mask_key(path)),
            )
        )
    return replace(ManipulationSet.of(name or root.name, records, root), notes=_notes(root))


def _notes(root: Path) -> tuple[str, ...]:
    """Say what else lies in such a tree."""
    inside = find_pictures(root)
    loose = tuple(path for path in inside.pictures if path.partition("/")[0] not in FOLDERS)
    note = said({**inside.left_out, "beside the folders": loose})
    return (f"'{root}': {note}",) if note else ()


def write_folders(root: Path, images: ManipulationSet) -> None:
    """Copy a set into such a tree; edits are named after their originals, ``edited/[EDITOR/]00012_1.png``.

    Raises:
        DataError: the set has fully synthetic pictures, or `root` has pictures already.
    """
    if (images.labels == SYNTHETIC).any():
        raise DataError(
            f"'{images.name}' has fully synthetic pictures: folders real and edited have no place for them."
        )
    if any((root / folder).exists() for folder in FOLDERS):
        raise DataError(f"'{root}' has pictures already: give a new folder.")
    for folder in ("real", "edited"):
        (root / folder).mkdir(parents=True)
    numbers, edits = images.sources.codes, Counter[int]()
    has_mask = [index for index, r in enumerate(images.records) if r.label == EDITED and (r.mask or r.boxes)]
    masks = dict(zip(has_mask, stored_masks(images.subset(has_mask), root, ".filled"), strict=True))
    for index, record in enumerate(images.records):
        number = int(numbers[index])
        if record.label == REAL:
            copied(images.root / record.image, root / "real" / f"{number:06d}")
            continue
        edits[number] += 1
        editor = re.sub(r"[^\w.\-]+", "_", record.editor or "").lstrip(".")  # never a path of its own
        name = Path(editor) / f"{number:06d}_{edits[number]}"
        copied(images.root / record.image, root / "edited" / name)
        if masks.get(index):
            copied(root / str(masks[index]), root / "masks" / name)
    shutil.rmtree(root / ".filled", ignore_errors=True)
