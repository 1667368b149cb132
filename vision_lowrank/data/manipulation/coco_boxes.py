"""COCO-style boxes of edited regions: ``{"images": [...], "annotations": [...], "categories": [...]}``.

Label rule: a picture with at least one annotation is edited; one without any is real, and annotated as such (no
boxes). ``bbox`` is left, top, width, height in pixels. A category's name counts where the vocabulary has it: as the
region's cue, or as the picture's kind of edit if all its boxes agree. Of ``images``, the keys `source_id`, `group`,
`editor` and `split` are taken over where they are present: an image is a source of its own without `source_id`.

Polygons and run lengths under ``segmentation`` are not read; a warning says so where there are any.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ...config.marks import File, Folder
from ...config.schema import Section
from ...errors import DataError
from ...registry import register
from ..images import listed
from .base import EDITED, REAL, ManipulationSet, ManipulationSplits, PictureRecord, Region, Vocabulary
from .options import HeldOut, splits_of
from .schema import clipped, parsed
from .splits import SPLITS

OWN_KEYS = ("source_id", "group", "editor", "split")


class CocoParts(Section):
    """Annotation files of ready-made splits."""

    train: File = Field(description="annotations of the training pictures")
    test: File = Field(description="annotations of the test pictures")
    val: File | None = Field(None, description="annotations of the validation pictures; null = a tenth of train")


class CocoBoxesConfig(HeldOut):
    """Options of ``data: {type: coco_boxes}``."""

    type: Literal["coco_boxes"] = "coco_boxes"
    images: Folder = Field(description="folder that `file_name` starts from")
    annotations: File | CocoParts = Field(description="one JSON file to split by source, or {train, test, val}")


@register("data", "coco_boxes", summary="COCO-style boxes of edited regions", config=CocoBoxesConfig, gives="edits")
def coco_boxes(config: CocoBoxesConfig) -> ManipulationSplits:
    """Load the splits of one annotation file or of several.

    Raises:
        DataError: a file is missing or contradicts itself.
    """
    folder, given = Path(config.images).expanduser(), config.annotations
    if isinstance(given, str):
        return splits_of(read_coco(Path(given).expanduser(), folder), config)
    files = {name: path for name, path in given.model_dump().items() if path is not None}
    return splits_of({name: read_coco(Path(path).expanduser(), folder, name) for name, path in files.items()}, config)


def read_coco(path: Path, folder: Path, name: str | None = None) -> ManipulationSet:
    """Read the pictures of an annotation file; ids are their file names.

    Raises:
        DataError: the file is missing or no such object; a box lies beyond its picture or belongs to none; a picture
            is missing from `folder` or listed twice.
    """
    if not path.is_file():
        raise DataError(f"file '{path}' does not exist: check the path.")
    content = parsed(path.read_bytes(), f"'{path}'")
    try:
        images = {int(row["id"]): row for row in content["images"]}
        names = {int(row["id"]): str(row["name"]) for row in content.get("categories", ())}
        annotations: dict[int, list[dict[str, Any]]] = {number: [] for number in images}
        for row in content["annotations"]:
            if row["image_id"] not in annotations:
                raise DataError(
                    f"'{path}': annotation {row.get('id')} belongs to image {row['image_id']}, which is not there."
                )
            annotations[row["image_id"]].append(row)
        if len(images) < len(content["images"]) or len({row["file_name"] for row in images.values()}) < len(images):
            raise DataError(f"'{path}' lists an image id or a file name twice: keep one entry per picture.")
        records = [_record(path, images[number], annotations[number], names) for number in images]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"'{path}' is no COCO annotation file: {type(error).__name__} {error}.") from None
    absent = [record.image for record in records if not (folder / record.image).is_file()]
    if absent:
        raise DataError(f"{len(absent):,} of {len(records):,} pictures are not in '{folder}', {listed(absent)}.")
    masks = sum(1 for rows in annotations.values() for row in rows if row.get("segmentation"))
    if masks:
        warnings.warn(f"'{path}': {masks:,} segmentations are not read, only boxes.", stacklevel=2)
    return ManipulationSet.of(name or path.stem, records, folder)


def _record(path: Path, image: dict[str, Any], rows: list[dict[str, Any]], names: dict[int, str]) -> PictureRecord:
    vocabulary, width, height = Vocabulary(), int(image["width"]), int(image["height"])
    known = {name for group in vocabulary.categories.values() for name in group}
    regions, kinds = [], set()
    for row in rows:
        x, y, w, h = (float(value) for value in row["bbox"])
        box = clipped((x, y, x + w, y + h), width, height)
        if box is None:
            raise DataError(
                f"'{path}': annotation {row.get('id')} of '{image['file_name']}', bbox {row['bbox']}, is empty or lies "
                f"beyond the picture of {width}x{height}."
            )
        name = names.get(row.get("category_id", -1), "")
        kinds.add(name if name in known else None)
        regions.append(Region(box, (name,) if name in vocabulary.cues else None))
    own = {key: str(image[key]) for key in OWN_KEYS if image.get(key) is not None}
    if own.get("split", "train") not in SPLITS:
        raise DataError(f"'{path}': split '{own['split']}' of '{image['file_name']}' is none of {', '.join(SPLITS)}.")
    return PictureRecord(
        id=image["file_name"],
        image=image["file_name"],
        label=EDITED if rows else REAL,
        category=kinds.pop() if len(kinds) == 1 else None,
        width=width,
        height=height,
        boxes=tuple(regions),
        scope="local" if rows else "unknown",
        **({"source_id": image["file_name"]} | own),
    )
