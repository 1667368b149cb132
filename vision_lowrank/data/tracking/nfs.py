"""Need for Speed (NFS): 100 clips at 30 frames per second, in one of the two layouts that are around.

* As trackers' toolkits want it: ``root/sequences/CLIP/00001.jpg``, ``root/anno/nfs_CLIP.txt``, rows of left, top, width
  and height between tabs.
* As it is published: ``root/CLIP/30/CLIP/*.jpg`` beside ``root/CLIP/30/CLIP.txt``, rows of the annotation tool: a
  number, left, top, right, bottom, and more. They count 240 frames per second where there are eight times as many rows
  as frames; every eighth is taken. One row or one frame too many is left out.

Clips are called ``nfs_CLIP``, as in result files.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from ...config.marks import Folder
from ...config.schema import Section
from ...registry import register
from .base import ClipSplits
from .reading import (
    FileClip,
    FileClips,
    Footage,
    as_splits,
    check_found,
    folder_of,
    folders_in,
    footage_of,
    pictures_in,
)
from .text import read_numbers

REMEDY = "get NFS from http://ci2cv.net/nfs/index.html"
PUBLISHED, PREFIX = 100, "nfs_"


class NfsConfig(Section):
    """Options of ``data: {type: nfs}``."""

    type: Literal["nfs"] = "nfs"
    root: Folder = Field(description="folder of `sequences` and `anno`, or of the clips' folders")


@register(
    "data", "nfs", summary="Need for Speed at 30 frames per second", paper="arXiv 1703.05884", config=NfsConfig,
    gives="clips",
)  # fmt: skip
def nfs(config: NfsConfig) -> ClipSplits:
    """Give the clips that :func:`read_nfs` finds, for testing."""
    return as_splits(read_nfs(config))


def read_nfs(config: NfsConfig) -> FileClips:
    """Find the clips, by name.

    Raises:
        DataError: the folder is missing or holds no clips.
    """
    root = folder_of(config.root, REMEDY)
    if (root / "sequences").is_dir():
        paths = sorted(path for path in (root / "anno").glob("*.txt") if path.name[0] != ".")
        names = [path.stem.removeprefix(PREFIX) for path in paths]
        loads = [
            partial(_load_converted, root / "sequences" / name, path) for name, path in zip(names, paths, strict=True)
        ]
    else:
        names = [path.name for path in folders_in(root) if (path / "30" / f"{path.name}.txt").is_file()]
        loads = [partial(_load_published, root / name / "30" / name) for name in names]
    check_found(len(names), root, "anno/nfs_CLIP.txt, nor CLIP/30/CLIP.txt", REMEDY)
    clips = tuple(FileClip(PREFIX + name, load) for name, load in zip(names, loads, strict=True))
    return FileClips("nfs", clips, published=PUBLISHED)


def _load_converted(folder: Path, truth: Path) -> Footage:
    return footage_of(PREFIX + folder.name, pictures_in(folder), read_numbers(truth, 4))


def _load_published(folder: Path) -> Footage:
    frames, rows = pictures_in(folder), read_numbers(folder.with_suffix(".txt"), 5)[:, 1:]
    boxes = np.concatenate([rows[:, :2], rows[:, 2:] - rows[:, :2]], axis=1)
    if frames and abs(len(boxes) / len(frames) - 8) < 1:
        boxes = boxes[::8]
    if len(boxes) == len(frames) + 1:
        boxes = boxes[:-1]
    return footage_of(PREFIX + folder.name, frames, boxes)
