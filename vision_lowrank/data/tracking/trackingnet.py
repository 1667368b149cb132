"""TrackingNet: 12 chunks of 2,511 training clips and 511 test clips, as its devkit unpacks them.

``root/{TRAIN_0 … TRAIN_11, TEST}/{frames/ID/0.jpg, anno/ID.txt}``. Frames have numbers without leading zeros. Of a test
clip only the first box is known, the others are the server's.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ...config.marks import Folder
from ...config.schema import Section
from ...errors import DataError
from ...registry import register
from ..images import listed
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
    with_first_box,
)
from .text import read_numbers

REMEDY = "get TrackingNet by https://github.com/SilvioGiancola/TrackingNet-devkit"
CHUNKS, OF_A_CHUNK, OF_TEST = 12, 2511, 511


class TrackingNetConfig(Section):
    """Options of ``data: {type: trackingnet}``."""

    type: Literal["trackingnet"] = "trackingnet"
    root: Folder = Field(description="folder of `TRAIN_0` … `TRAIN_11` and `TEST`")
    split: Literal["train", "test"] = Field("test", description="which clips")
    chunks: tuple[Annotated[int, Field(ge=0, lt=CHUNKS)], ...] | None = Field(
        None, min_length=1, description="numbers of the chunks to train on; null = all that are there"
    )


@register(
    "data", "trackingnet", summary="TrackingNet, 30,000 short clips from YouTube", paper="arXiv 1803.10794",
    config=TrackingNetConfig, gives="clips",
)  # fmt: skip
def trackingnet(config: TrackingNetConfig) -> ClipSplits:
    """Give the clips that :func:`read_trackingnet` finds, for training or as a test set."""
    return as_splits(read_trackingnet(config), train=config.split == "train")


def read_trackingnet(config: TrackingNetConfig) -> FileClips:
    """Find the clips of a split, chunk by chunk.

    Raises:
        DataError: the folder or a chunk is missing, or has no annotations.
    """
    root = folder_of(config.root, REMEDY)
    names = ["TEST"]
    if config.split == "train":
        there = [number for number in range(CHUNKS) if (root / f"TRAIN_{number}").is_dir()]
        names = [f"TRAIN_{number}" for number in (there if config.chunks is None else config.chunks)]
    lacking = [name for name in names or ["TRAIN_0"] if not (root / name / "anno").is_dir()]
    if lacking:
        near = [path.name for path in folders_in(root) if re.match("train|test", path.name, re.IGNORECASE)]
        has = f" (it has {listed(near)})" if near else ""
        raise DataError(f"'{root}' has no {listed(f'{name}/anno' for name in lacking)}{has}: {REMEDY}.")
    clips = []
    for chunk in (root / name for name in names):
        annotations = sorted(path for path in (chunk / "anno").glob("*.txt") if path.name[0] != ".")
        check_found(len(annotations), chunk / "anno", "ID.txt", REMEDY)
        clips += [FileClip(path.stem, partial(_load, path, chunk / "frames" / path.stem)) for path in annotations]
    published = OF_TEST if config.split == "test" else OF_A_CHUNK * len(names)
    return FileClips("trackingnet", tuple(clips), published=published)


def _load(annotation: Path, folder: Path) -> Footage:
    frames, boxes = pictures_in(folder), read_numbers(annotation, 4)
    if len(boxes) == 1:
        return with_first_box(annotation.stem, frames, boxes)
    return footage_of(annotation.stem, frames, boxes)
