"""UAV123 and UAV20L: 123 clips, and 20 long ones, filmed from drones; 51 of UAV123 are parts of a longer folder.

``root/data_seq/UAV123/FOLDER/000001.jpg``, ``root/anno/UAV123/CLIP.txt`` (UAV20L: ``anno/UAV20L``), a row of NaN where
the target is absent; ``anno/UAV123/att/CLIP.txt`` holds 12 flags, where it is there. Pixels count from 1.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from ...config.marks import Folder
from ...config.schema import Section
from ...errors import DataError
from ...registry import register
from .base import ClipSplits
from .reading import (
    FileClip,
    FileClips,
    Footage,
    as_splits,
    check_found,
    folder_of,
    footage_of,
    numbered,
)
from .text import read_flags, read_numbers

REMEDY = "get UAV123 from https://cemse.kaust.edu.sa/ivul/uav123"
PUBLISHED = {"uav123": 123, "uav20l": 20}

_SEGMENTS = """
bird1 1-253,775-1477,1573-2437; car1 1-751,751-1627,1627-2629; car6 1-487,487-1807,1807-2953,2953-3925,3925-4861;
car8 1-1357,1357-2575; car16 1-415,415-1993; group1 1-1333,1333-2515,2515-3925,3925-4873;
group2 1-907,907-1771,1771-2683; group3 1-1567,1567-2827,2827-4369,4369-5527; person2 1-1189,1189-2623;
person4 1-1501,1501-2743; person5 1-877,877-2101; person7 1-1249,1249-2065; person8 1-1075,1075-1525;
person12 1-601,601-1621; person14 1-847,847-1813,1813-2923; person17 1-1501,1501-2347;
person19 1-1243,1243-2791,2791-4357; truck4 1-577,577-1261; uav1 1-1555,1555-2377,2473-3469
"""

# Clip -> its folder, first and last frame; where a clip is not here, its folder has its name and the frames start at 1.
SEGMENTS: dict[str, tuple[str, int, int]] = {
    f"{folder}_{number}": (folder, *(int(end) for end in part.split("-")))
    for folder, parts in (entry.split() for entry in _SEGMENTS.split(";"))
    for number, part in enumerate(parts.split(","), 1)
}

# In the order of the flags in anno/UAV123/att.
ATTRIBUTES = (
    "scale_variation", "aspect_ratio_change", "low_resolution", "fast_motion", "full_occlusion", "partial_occlusion",
    "out_of_view", "background_clutter", "illumination_variation", "viewpoint_change", "camera_motion",
    "similar_object",
)  # fmt: skip


class Uav123Config(Section):
    """Options of ``data: {type: uav123}``."""

    type: Literal["uav123"] = "uav123"
    root: Folder = Field(description="folder of `data_seq` and `anno`")
    split: Literal["uav123", "uav20l"] = Field("uav123", description="`uav20l`: the 20 long clips")


@register(
    "data", "uav123", summary="UAV123 and UAV20L, clips filmed from drones", paper="doi 10.1007/978-3-319-46448-0_27",
    config=Uav123Config, gives="clips",
)  # fmt: skip
def uav123(config: Uav123Config) -> ClipSplits:
    """Give the clips that :func:`read_uav123` finds, for testing."""
    return as_splits(read_uav123(config))


def read_uav123(config: Uav123Config) -> FileClips:
    """Find the annotated clips, by name.

    Raises:
        DataError: the folder is missing or has no annotations.
    """
    root = folder_of(config.root, REMEDY)
    annotations = root / "anno" / config.split.upper()
    paths = sorted(path for path in annotations.glob("*.txt") if path.name[0] != ".") if annotations.is_dir() else []
    check_found(len(paths), root, f"anno/{annotations.name}/CLIP.txt", REMEDY)
    load = partial(_load, root / "data_seq" / "UAV123", config.split == "uav123")
    clips = tuple(FileClip(path.stem, partial(load, path), origin=1) for path in paths)
    return FileClips(config.split, clips, published=PUBLISHED[config.split], origin=1)


def _load(frames: Path, parts: bool, annotation: Path) -> Footage:
    name, boxes = annotation.stem, read_numbers(annotation, 4)
    folder, first, last = (SEGMENTS if parts else {}).get(name, (name, 1, len(boxes)))
    if last - first + 1 != len(boxes):
        raise DataError(f"'{annotation}' has {len(boxes):,} rows for frames {first} to {last} of '{folder}': {REMEDY}.")
    flags = annotation.parent / "att" / annotation.name
    known = read_flags(flags, len(ATTRIBUTES)) if flags.is_file() else ()
    hard = tuple(attribute for attribute, flag in zip(ATTRIBUTES, known, strict=False) if flag > 0)
    return footage_of(name, numbered(frames / folder, range(first, last + 1), name), boxes, attributes=hard)
