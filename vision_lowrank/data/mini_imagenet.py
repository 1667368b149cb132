"""miniImageNet as few-shot class-incremental learning splits it: ``images`` and ``split/{train,test}.csv``.

Both tables have the columns ``filename`` and ``label`` (a WordNet id) and list pictures of all 100 classes, 50,000 for
training and 10,000 for testing. A label is the rank of the WordNet id in the sorted ids of the train table. Rows keep
their order: the fixed shots are positions in the train table. Older few-shot papers have tables of the same names with
other classes for training than for testing; those are refused.
"""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from ..config.marks import File, Folder
from ..config.schema import Section
from ..errors import DataError
from ..registry import register
from .base import ImageSet, Splits
from .images import listed, read_under
from .options import Templates, class_name
from .published import check_pictures, published_folder

FOLDER, SPLITS, COLUMNS = "miniimagenet", ("train", "test"), ("filename", "label")
REMEDY = "get miniImageNet as https://github.com/icoz69/CEC-CVPR2021 describes"


class MiniImagenetConfig(Section):
    """Options of ``data: {type: mini_imagenet}``."""

    type: Literal["mini_imagenet"] = "mini_imagenet"
    root: Folder = Field(description="folder that holds `miniimagenet`, or that folder itself")
    names: File | None = Field(
        None,
        description="file with one 'wnid name' per line, such as CoOp's classnames.txt; null = wnids are the names",
    )
    templates: Templates = Field(("a photo of a {}.",), description="prompt templates, {} = class name")


class Row(NamedTuple):
    """One line of a table: file name below ``images``, and WordNet id."""

    key: str
    label: str


@register(
    "data", "mini_imagenet", summary="miniImageNet as in class-incremental learning, original order",
    config=MiniImagenetConfig, gives="classes",
)  # fmt: skip
def mini_imagenet(config: MiniImagenetConfig) -> Splits:
    """Load the train and test pictures in the order of the tables; no val; keys are file names below ``images``.

    Raises:
        DataError: a table, the file of names or a picture is missing, a table is malformed, the tables have different
            classes, or a class has no name.
    """
    folder = published_folder(config.root, FOLDER, ("images", *(f"split/{split}.csv" for split in SPLITS)), REMEDY)
    train, test = (_rows(folder / "split" / f"{split}.csv") for split in SPLITS)
    wnids = sorted({row.label for row in train})
    odd = sorted(set(wnids) ^ {row.label for row in test})
    if odd:
        raise DataError(f"'{folder / 'split'}': only one of train.csv and test.csv has class {listed(odd)}: {REMEDY}.")
    check_pictures(folder / "images", [row.key for row in (*train, *test)], REMEDY)
    classes = _names(Path(config.names).expanduser(), wnids) if config.names is not None else tuple(wnids)
    numbers = {wnid: label for label, wnid in enumerate(wnids)}
    sets = [
        ImageSet(
            name=split,
            classes=classes,
            labels=tuple(numbers[row.label] for row in rows),
            keys=tuple(row.key for row in rows),
            load=partial(read_under, folder / "images"),
        )
        for split, rows in zip(SPLITS, (train, test), strict=True)
    ]
    return Splits(sets[0], sets[0].subset([]), {"test": sets[1]}, templates=config.templates)


def _rows(path: Path) -> list[Row]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [Row(*((line.get(column) or "").strip() for column in COLUMNS)) for line in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error):
        rows = []
    if not rows or not all(map(all, rows)):
        raise DataError(f"'{path}' is not a table with the columns {','.join(COLUMNS)} filled in: {REMEDY}.")
    return rows


def _names(path: Path, wnids: list[str]) -> tuple[str, ...]:
    if not path.is_file():
        raise DataError(f"file of class names '{path}' does not exist: check data.names, or leave it out.")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    names = {wnid: class_name(name) for wnid, _, name in (line.strip().partition(" ") for line in lines)}
    absent = [wnid for wnid in wnids if not names.get(wnid)]
    if absent:
        raise DataError(f"file of class names '{path}' has no name for {listed(absent)}: add lines 'wnid name'.")
    return tuple(names[wnid] for wnid in wnids)
