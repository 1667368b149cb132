"""TNL2K's test set: 700 clips, ``root/CLIP/{imgs/*.png or *.jpg, groundtruth.txt, language.txt}``.

Pictures are taken in the order of their names, whatever their endings, which may differ within a clip.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from ...config.marks import Folder
from ...config.schema import Section
from ...registry import register
from ..find_pictures import said
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

REMEDY = "get TNL2K from https://sites.google.com/view/langtrackbenchmark/"
TRUTH, PUBLISHED = "groundtruth.txt", 700
NO_TRUTH = f"without {TRUTH}"


class Tnl2kConfig(Section):
    """Options of ``data: {type: tnl2k}``."""

    type: Literal["tnl2k"] = "tnl2k"
    root: Folder = Field(description="folder of the test clips' folders")


@register(
    "data", "tnl2k", summary="TNL2K's test clips, some from thermal cameras and animated films",
    paper="arXiv 2103.16746", config=Tnl2kConfig, gives="clips",
)  # fmt: skip
def tnl2k(config: Tnl2kConfig) -> ClipSplits:
    """Give the clips that :func:`read_tnl2k` finds, for testing."""
    return as_splits(read_tnl2k(config))


def read_tnl2k(config: Tnl2kConfig) -> FileClips:
    """Find the clips, by name.

    Raises:
        DataError: the folder is missing or holds no clips.
    """
    root = folder_of(config.root, REMEDY)
    folders = folders_in(root)
    clips = [folder for folder in folders if (folder / TRUTH).is_file()]
    check_found(len(clips), root, f"folders with a {TRUTH}", REMEDY)
    other = said({NO_TRUTH: tuple(folder.name for folder in folders if folder not in clips)})
    return FileClips(
        "tnl2k", tuple(FileClip(each.name, partial(_load, each)) for each in clips), published=PUBLISHED,
        notes=(other,) if other else (),
    )  # fmt: skip


def _load(folder: Path) -> Footage:
    frames = sorted(pictures_in(folder / "imgs"), key=lambda path: path.name)
    return footage_of(folder.name, frames, read_numbers(folder / TRUTH, 4))
