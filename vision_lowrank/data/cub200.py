"""CUB-200-2011, pictures of 200 kinds of birds, from its official folder ``CUB_200_2011``.

Four lists, one "id value" per line: ``images.txt`` (path below ``images``), ``image_class_labels.txt`` (class id, from
1), ``train_test_split.txt`` (1 = train, 0 = test) and ``classes.txt`` (such as ``001.Black_footed_Albatross``). A
label is the class id minus 1. Pictures keep the order of ``images.txt``: the fixed shots of few-shot class-incremental
learning are positions in it. (5,994 pictures for training, 29 or 30 per class, and 5,794 for testing.)
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from ..config.marks import Folder
from ..config.schema import Section
from ..errors import DataError
from ..registry import register
from .base import ImageSet, Splits
from .images import read_under
from .options import Templates, class_name
from .published import check_pictures, published_folder

FOLDER, LISTS = "CUB_200_2011", ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
REMEDY = "unpack CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/"


class Cub200Config(Section):
    """Options of ``data: {type: cub200}``."""

    type: Literal["cub200"] = "cub200"
    root: Folder = Field(description="folder that holds `CUB_200_2011`, or that folder itself")
    templates: Templates = Field(("a photo of a {}, a type of bird.",), description="prompt templates, {} = class name")


@register(
    "data",
    "cub200",
    summary="CUB-200-2011's official folder and split, original order",
    config=Cub200Config,
    gives="classes",
)
def cub200(config: Cub200Config) -> Splits:
    """Load the official train and test pictures in ``images.txt``'s order; no val; keys are paths below ``images``.

    Raises:
        DataError: a list or a picture is missing, or the lists contradict each other.
    """
    folder = published_folder(config.root, FOLDER, ("images", *LISTS), REMEDY)
    paths, numbers, sides, names = (_table(folder / name) for name in LISTS)
    _check(folder, paths, numbers, sides, names)
    check_pictures(folder / "images", tuple(paths.values()), REMEDY)
    images = ImageSet(
        name="cub200",
        classes=tuple(class_name(name.partition(".")[2]) for name in names.values()),
        labels=tuple(int(numbers[image]) - 1 for image in paths),
        keys=tuple(paths.values()),
        load=partial(read_under, folder / "images"),
    )
    train, test = (images.subset([i for i, image in enumerate(paths) if sides[image] == side]) for side in ("1", "0"))
    return Splits(train, train.subset([]), {"test": test}, templates=config.templates)


def _table(path: Path) -> dict[str, str]:
    """Read the lines of a list, id -> value, in order."""
    rows = [line.strip().partition(" ") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    table = {key: value.strip() for key, _, value in rows if key}
    if len(table) != sum(1 for key, _, _ in rows if key) or not table or "" in table.values():
        raise DataError(f"'{path}' is not a list with one 'id value' per line, each id once: {REMEDY} again.")
    return table


def _check(
    folder: Path, paths: dict[str, str], numbers: dict[str, str], sides: dict[str, str], names: dict[str, str]
) -> None:
    if list(names) != [str(number) for number in range(1, len(names) + 1)]:
        raise DataError(
            f"'{folder / LISTS[3]}' does not number its classes 1 to {len(names)} in order: {REMEDY} again."
        )
    for name, table in zip(LISTS[1:3], (numbers, sides), strict=True):
        odd = sorted(paths.keys() ^ table.keys())
        if odd:
            raise DataError(f"'{folder}': only one of {LISTS[0]} and {name} has image {odd[0]}: {REMEDY} again.")
    for image, path in paths.items():
        if path.partition("/")[0] != names.get(numbers[image]):
            raise DataError(
                f"'{folder}': image {image} has class {numbers[image]} in {LISTS[1]}, but its path is '{path}': "
                f"{REMEDY} again."
            )
        if sides[image] not in ("0", "1"):
            raise DataError(
                f"'{folder / LISTS[2]}' has '{sides[image]}' for image {image}, not 0 or 1: {REMEDY} again."
            )
