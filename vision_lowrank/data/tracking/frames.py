"""One clip of one's own: a folder of frames, and a text file with the box of the target.

Frames are taken in the order of the numbers in their names. The file has one row of left, top, width, height per frame,
NaN or zeros where the target is not to be seen; or a single row, the box in the first frame.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from ...config.marks import File, Folder
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
    has_area,
    pictures_in,
    with_first_box,
)
from .text import read_numbers


class FramesConfig(Section):
    """Options of ``data: {type: frames}``."""

    type: Literal["frames"] = "frames"
    root: Folder = Field(description="folder of the frames, in the order of the numbers in their names")
    split: Literal["train", "test"] = Field("test", description="what the clip is for")
    boxes: File = Field(description="text file: left, top, width, height in each frame, or in the first one")


@register("data", "frames", summary="a folder of frames and a text file of boxes", config=FramesConfig, gives="clips")
def frames(config: FramesConfig) -> ClipSplits:
    """Give the clips that :func:`read_frames` finds, for training or as a test set."""
    return as_splits(read_frames(config), train=config.split == "train")


def read_frames(config: FramesConfig) -> FileClips:
    """Find the clip; it has the folder's name.

    Raises:
        DataError: the folder has no pictures, or the file is damaged or does not fit.
    """
    folder = folder_of(config.root, "give the folder of the frames")
    check_found(len(pictures_in(folder)), folder, "pictures", "give the folder of the frames")
    clip = FileClip(folder.name, partial(_load, folder, Path(config.boxes).expanduser()))
    if not clip.visible[0]:
        raise DataError(f"'{config.boxes}', row 1: the box has no size: the first frame's is where tracking starts.")
    return FileClips(folder.name, (clip,), published=1)


def _load(folder: Path, path: Path) -> Footage:
    pictures, boxes = pictures_in(folder), read_numbers(path, 4)
    if len(boxes) == 1 and len(pictures) > 1 and has_area(boxes)[0]:
        return with_first_box(folder.name, pictures, boxes)
    if len(boxes) != len(pictures):
        raise DataError(
            f"'{path}' has {len(boxes):,} rows for the {len(pictures):,} frames in '{folder}': give one per frame, or "
            "the first frame's alone."
        )
    return footage_of(folder.name, pictures, boxes)
