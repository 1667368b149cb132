"""VastTrack: clips of 2,115 categories, ``root/CATEGORY/CLIP/{imgs, Groundtruth.txt, nlp.txt}``.

The file of boxes is called ``Groundtruth.txt`` or ``groundtruth.txt``, whichever there is. A row of zeros is a frame
without the target. `names`, a text file of clips' names such as the published list of test clips, chooses among them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from ...config.marks import File, Folder
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
    check_there,
    folder_of,
    folders_in,
    footage_of,
    pictures_in,
)
from .text import read_lines, read_numbers

REMEDY = "get VastTrack from https://github.com/HengLan/VastTrack"


class VastTrackConfig(Section):
    """Options of ``data: {type: vasttrack}``."""

    type: Literal["vasttrack"] = "vasttrack"
    root: Folder = Field(description="folder of the categories' folders")
    split: Literal["train", "test"] = Field("test", description="what the clips are for")
    names: File | None = Field(None, description="text file of clips to take, one name a line; null = all there are")


@register(
    "data", "vasttrack", summary="VastTrack, clips of 2,115 categories", paper="arXiv 2403.03493",
    config=VastTrackConfig, gives="clips",
)  # fmt: skip
def vasttrack(config: VastTrackConfig) -> ClipSplits:
    """Give the clips that :func:`read_vasttrack` finds, for training or as a test set."""
    return as_splits(read_vasttrack(config), train=config.split == "train")


def read_vasttrack(config: VastTrackConfig) -> FileClips:
    """Find the clips, category by category.

    Raises:
        DataError: the folder, or a clip of `names`, is missing; or there are no clips.
    """
    root = folder_of(config.root, REMEDY)
    folders = [folder for category in folders_in(root) for folder in folders_in(category)]
    truths = {folder: truth for folder in folders if (truth := _truth(folder))}
    check_found(len(truths), root, "CATEGORY/CLIP/Groundtruth.txt", REMEDY)
    there = {folder.name: (folder, truth) for folder, truth in truths.items()}
    chosen = list(there)
    if config.names is not None:
        lines = read_lines(Path(config.names).expanduser())
        chosen = [Path(line.strip()).name for line in lines if line.strip()]
        check_there([name for name in chosen if name not in there], len(chosen), root, REMEDY)
    clips = tuple(FileClip(name, partial(_load, *there[name])) for name in chosen)
    other = said({"without Groundtruth.txt": tuple(folder.name for folder in folders if folder not in truths)})
    published = len(chosen) if config.names is not None else None
    return FileClips("vasttrack", clips, published=published, notes=(other,) if other else ())


def _truth(folder: Path) -> Path | None:
    """Return the file of boxes in a clip's folder, whatever its case."""
    return next((path for path in sorted(folder.iterdir()) if path.name.lower() == "groundtruth.txt"), None)


def _load(folder: Path, truth: Path) -> Footage:
    boxes = read_numbers(truth, 4)
    return footage_of(folder.name, pictures_in(folder / "imgs"), boxes, (boxes != 0).any(axis=1))
