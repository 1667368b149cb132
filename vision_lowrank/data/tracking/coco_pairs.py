"""COCO's pictures as clips of one frame, one per annotated object: training pairs of two crops of the same picture.

``file`` is an ``instances_*.json``, ``root`` the folder of its pictures. Crowds and boxes of no size are left out. The
objects of a picture are one group: a sampler draws pictures equally often, then one of its objects, as LoRAT does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from pydantic import Field

from ...config.marks import File, Folder
from ...config.schema import Section
from ...errors import DataError
from ...registry import register
from .base import Clip, ClipSplits
from .reading import (
    FileClip,
    FileClips,
    Footage,
    as_splits,
    check_found,
    folder_of,
)

REMEDY = "get COCO's pictures and instances_*.json from https://cocodataset.org/#download"


class CocoPairsConfig(Section):
    """Options of ``data: {type: coco_pairs}``."""

    type: Literal["coco_pairs"] = "coco_pairs"
    root: Folder = Field(description="folder of the pictures, such as `train2017`")
    file: File = Field(description="annotations, such as `annotations/instances_train2017.json`")


class ObjectClips(Sequence[Clip]):
    """Clips of one frame that are made when they are asked for: COCO has 860,000.

    Args:
        folder: of the pictures.
        pictures: file name, and (width, height) or None, of each picture.
        of: (N,) int, the picture of each object.
        boxes: (N, 4) float64 left, top, width, height in pixels.
        numbers: (N,) int, the annotation's id.
        kinds: class of each object.
    """

    def __init__(
        self,
        folder: Path,
        pictures: Sequence[tuple[str, tuple[int, int] | None]],
        of: np.ndarray,
        boxes: np.ndarray,
        numbers: np.ndarray,
        kinds: Sequence[str],
    ) -> None:
        self._folder, self._pictures, self._of = folder, pictures, of
        self._boxes, self._numbers, self._kinds = boxes, numbers, kinds

    def __len__(self) -> int:
        return len(self._of)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Clip]: ...
    def __getitem__(self, index: int | slice) -> Clip | Sequence[Clip]:
        """Make clip `index`, or those of a slice."""
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        file, size = self._pictures[self._of[row]]
        footage = Footage(
            (self._folder / file,), self._boxes[row : row + 1], np.ones(1, dtype=bool), (self._kinds[row],), size
        )
        return FileClip(f"{Path(file).stem}-{self._numbers[row]}", partial(_same, footage))


@register(
    "data", "coco_pairs", summary="COCO's objects as clips of one frame", paper="arXiv 1405.0312",
    config=CocoPairsConfig, gives="clips",
)  # fmt: skip
def coco_pairs(config: CocoPairsConfig) -> ClipSplits:
    """Give the clips that :func:`read_coco_pairs` finds, for training."""
    return as_splits(read_coco_pairs(config), train=True)


def read_coco_pairs(config: CocoPairsConfig) -> FileClips:
    """Read the annotations; pictures are opened when a frame is asked for.

    Raises:
        DataError: the folder is missing, or the file is no COCO annotation file or lists no objects.
    """
    folder, path = folder_of(config.root, REMEDY), Path(config.file).expanduser()
    images, rows, kinds = _read(path)
    place = {number: index for index, number in enumerate(images)}
    kept = [row for row in rows if not row.get("iscrowd") and min(row["bbox"][2:]) > 0 and row["image_id"] in place]
    check_found(len(kept), path, "objects with a box", REMEDY)
    kept.sort(key=lambda row: place[row["image_id"]])
    of = np.array([place[row["image_id"]] for row in kept])
    clips = ObjectClips(
        folder,
        list(images.values()),
        of,
        np.array([row["bbox"] for row in kept], dtype=np.float64),
        np.array([row["id"] for row in kept]),
        [kinds.get(row.get("category_id"), "") for row in kept],
    )
    starts = np.flatnonzero(np.diff(of, prepend=-1))
    groups = [range(start, end) for start, end in zip(starts, [*starts[1:], len(of)], strict=True)]
    left = len(rows) - len(kept)
    notes = (f"left out: {left:,} crowds and boxes of no size",) if left else ()
    return FileClips("coco_pairs", clips, notes=notes, groups=groups)


def _read(path: Path) -> tuple[dict[Any, Any], list[dict[str, Any]], dict[Any, str]]:
    """Read pictures by id, annotations and class names by id."""
    try:
        content = json.loads(path.read_bytes())
        images = {row["id"]: (str(row["file_name"]), _size(row)) for row in content["images"]}
        rows = content["annotations"]
        for row in rows:
            left, top, width, height = (float(value) for value in row["bbox"])
            if not np.isfinite(left + top + width + height):
                raise ValueError(f"annotation {row['id']} has a box of no finite numbers")
            row["image_id"], row["id"] = row["image_id"], int(row["id"])
        return images, rows, {row["id"]: str(row["name"]) for row in content.get("categories", ())}
    except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise DataError(f"'{path}' is no COCO annotation file ({reason}): {REMEDY}.") from None


def _same(footage: Footage) -> Footage:
    """Give what is known already, where a clip would read it."""
    return footage


def _size(row: dict[str, Any]) -> tuple[int, int] | None:
    return (int(row["width"]), int(row["height"])) if "width" in row and "height" in row else None
