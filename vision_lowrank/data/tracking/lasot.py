"""LaSOT (1,400 clips of 70 classes) and its extension (150 of 15), as they are unpacked.

``root/CLASS/CLASS-N/{img/00000001.jpg, groundtruth.txt, full_occlusion.txt, out_of_view.txt}``, or ``root/CLASS-N``.
The splits are in ``training_set.txt`` and ``testing_set.txt`` of the root; without them the published test clips are
known by number, four of each class, and training are all others that are there. A target is visible where it is neither
fully occluded nor out of view. A clip has as many frames as boxes: monkey-17 has more pictures. Pixels count from 1.

Attributes (14 flags per clip) come with the evaluation toolkit, one file each in ``annos/att``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from ...config.marks import Folder
from ...config.schema import Section
from ...registry import register
from .base import ClipSplits
from .lasot_names import ATTRIBUTES, EXTENSION, TEST
from .reading import (
    FileClip,
    FileClips,
    Footage,
    as_splits,
    check_found,
    check_there,
    folder_of,
    folders_in,
    footage_of,
    numbered,
    pictures_in,
)
from .text import read_flags, read_lines, read_numbers

REMEDY = "get LaSOT from http://vision.cs.stonybrook.edu/~lasot/"
LISTS = {"train": "training_set.txt", "test": "testing_set.txt"}
PUBLISHED = {"train": 1120, "test": 280, "all": 1400}


class LasotConfig(Section):
    """Options of ``data: {type: lasot}``."""

    type: Literal["lasot"] = "lasot"
    root: Folder = Field(description="folder of the classes' folders, or of the clips' own")
    split: Literal["train", "test", "all"] = Field("test", description="`all`: every clip that is there")
    attributes: Folder | None = Field(None, description="the toolkit's `annos/att`, one file of 14 flags per clip")


class LasotExtConfig(Section):
    """Options of ``data: {type: lasot_ext}``."""

    type: Literal["lasot_ext"] = "lasot_ext"
    root: Folder = Field(description="folder of the classes' folders, or of the clips' own")
    attributes: Folder | None = Field(None, description="the toolkit's `annos/att`, one file of 14 flags per clip")


@register(
    "data", "lasot", summary="LaSOT, long clips of 70 classes", paper="arXiv 1809.07845", config=LasotConfig,
    gives="clips",
)  # fmt: skip
def lasot(config: LasotConfig) -> ClipSplits:
    """Give the clips that :func:`read_lasot` finds, for training or as a test set."""
    return as_splits(read_lasot(config), train=config.split == "train")


def read_lasot(config: LasotConfig) -> FileClips:
    """Find the clips of a split.

    Raises:
        DataError: the folder, or clips of the split, are missing.
    """
    root = folder_of(config.root, REMEDY)
    there = _clips(root)
    names = list(there) if config.split == "all" else _listed(root, config.split, list(there))
    check_found(len(there), root, "clips called CLASS-N with a groundtruth.txt", REMEDY)
    check_there([name for name in names if name not in there], len(names), root, REMEDY)
    return _set("lasot", {name: there[name] for name in names}, PUBLISHED[config.split], config.attributes)


@register(
    "data", "lasot_ext", summary="LaSOT's extension, 15 classes that LaSOT has not", paper="arXiv 2009.03465",
    config=LasotExtConfig, gives="clips",
)  # fmt: skip
def lasot_ext(config: LasotExtConfig) -> ClipSplits:
    """Give the clips that :func:`read_lasot_ext` finds, for testing."""
    return as_splits(read_lasot_ext(config))


def read_lasot_ext(config: LasotExtConfig) -> FileClips:
    """Find the clips of the 15 classes; other folders are left out.

    Raises:
        DataError: the folder, or one of the 150 clips, is missing.
    """
    root = folder_of(config.root, REMEDY)
    there = _clips(root)
    names = [f"{kind}-{number}" for kind in EXTENSION for number in range(1, 11)]
    check_found(len(there), root, "clips called CLASS-N with a groundtruth.txt", REMEDY)
    check_there([name for name in names if name not in there], len(names), root, REMEDY)
    return _set("lasot_ext", {name: there[name] for name in names}, len(names), config.attributes)


def published_tests() -> list[str]:
    """List LaSOT's 280 published test clips."""
    return [f"{kind}-{number}" for kind, numbers in TEST.items() for number in numbers]


def _set(name: str, clips: dict[str, Path], published: int, attributes: str | None) -> FileClips:
    flags = Path(attributes).expanduser() if attributes else None
    return FileClips(
        name,
        tuple(FileClip(each, partial(_load, each, folder, flags), origin=1) for each, folder in clips.items()),
        published=published,
        origin=1,
    )


def _clips(root: Path) -> dict[str, Path]:
    """Find all clips, in the classes' folders or in the root itself, by class and number."""
    places = [path for folder in folders_in(root) for path in ([folder] if _is_clip(folder) else folders_in(folder))]
    found = {path.name: path for path in places if _is_clip(path)}
    return dict(sorted(found.items(), key=lambda item: (_class(item[0]), int(item[0].rpartition("-")[2]))))


def _is_clip(folder: Path) -> bool:
    kind, _, number = folder.name.rpartition("-")
    return bool(kind) and number.isdecimal() and (folder / "groundtruth.txt").is_file()


def _class(name: str) -> str:
    return name.rpartition("-")[0]


def _listed(root: Path, split: str, there: list[str]) -> list[str]:
    path = root / LISTS[split]
    if path.is_file():
        return [line.strip() for line in read_lines(path) if line.strip()]
    tests = published_tests()
    return tests if split == "test" else [name for name in there if name not in set(tests)]


def _load(name: str, folder: Path, attributes: Path | None) -> Footage:
    boxes = read_numbers(folder / "groundtruth.txt", 4)
    hidden = [read_flags(folder / f"{what}.txt", len(boxes)) > 0 for what in ("full_occlusion", "out_of_view")]
    frames = numbered(folder / "img", range(1, len(boxes) + 1), name)
    more = set(pictures_in(folder / "img")) - set(frames)
    flags = read_flags(attributes / f"{name}.txt", len(ATTRIBUTES)) if attributes else ()
    hard = tuple(attribute for attribute, flag in zip(ATTRIBUTES, flags, strict=False) if flag > 0)
    return footage_of(name, [*frames, *more], boxes, ~(hidden[0] | hidden[1]), hard)
