"""Pictures in one folder per class: ``root/cat/1.jpg``, with ready-made splits or one tree to split.

The class of a picture is the first folder below the tree's root; deeper folders are searched too, hidden files and
files that do not end like pictures are passed over. Underscores in folder names become spaces in class names.

A root that holds ``train`` and ``test`` (perhaps ``val``), each a tree, has ready-made splits: so lie the data sets of
LAMDA-PILOT, ``data/<name>/{train,test}/<class>/``. Labels are the ranks of the sorted folder names, as ImageFolder's.

Of CoACT's 16 data sets, the reader ``coop`` serves dtd, eurosat, fgvc_aircraft, food101, oxford_flowers, oxford_pets,
stanford_cars and sun397; ``cifar100``, ``cub200`` and ``mini_imagenet`` have readers of their own; caltech101 (102
classes there, 100 in CoOp's), country211, gtsrb, resisc45 and voc2007 are read here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from ..config.marks import Folder
from ..config.schema import Section
from ..errors import DataError, near_miss
from ..registry import register
from .base import ImageSet, Splits
from .images import SUFFIXES, is_picture, listed, read_image, readable
from .options import Fractions, Templates, class_name
from .samplers import split_by_group

SPLITS = ("train", "val", "test")


class FolderConfig(Section):
    """Options of ``data: {type: folder}``: either `root`, or `train` and `test`."""

    type: Literal["folder"] = "folder"
    root: Folder | None = Field(
        None, description="one tree to split by `fractions`, or a folder of trees train, test and perhaps val"
    )
    train: Folder | None = Field(None, description="tree of training pictures, where splits are ready-made")
    val: Folder | None = Field(None, description="tree of validation pictures; null = none")
    test: Folder | None = Field(None, description="tree of test pictures")
    fractions: Fractions = Field((0.7, 0.1, 0.2), description="shares of train, val and test when `root` is split")
    seed: int = Field(0, ge=0, description="seed of that split")
    templates: Templates = Field(("a photo of a {}.",), description="prompt templates, {} = class name")
    skip_broken: bool = Field(False, description="leave out pictures that cannot be read, with a warning")

    @model_validator(mode="after")
    def _one_layout(self) -> FolderConfig:
        if self.root is not None and (self.train, self.val, self.test) != (None, None, None):
            raise ValueError("give `root` to split one tree, or `train`, `val` and `test`, not both")
        if self.root is None and (self.train is None or self.test is None):
            raise ValueError("give `root` to split one tree, or both `train` and `test`")
        return self


@register("data", "folder", summary="pictures in one folder per class", config=FolderConfig, gives="classes")
def folder(config: FolderConfig) -> Splits:
    """Return the splits of a class-per-folder tree or of several trees.

    Raises:
        DataError: a folder is missing, holds no pictures or another set of classes, pictures are broken, or `root`
            holds train and val but no test.
    """
    paths = _split_paths(config)
    if config.root is not None and not paths:
        images = read_tree(config.root, skip_broken=config.skip_broken)
        train, val, test = split_by_group(images, config.fractions, config.seed, images.keys)
        return Splits(train, val, {"test": test}, templates=config.templates)
    _check_distinct(paths)
    trees = {split: read_tree(path, config.skip_broken, prefix=f"{split}/") for split, path in paths.items()}
    train = trees["train"]
    for split, images in trees.items():
        _check_classes(train, images, split)
    return Splits(train, trees.get("val", train.subset([])), {"test": trees["test"]}, templates=config.templates)


def read_tree(root: str | Path, skip_broken: bool = False, prefix: str = "") -> ImageSet:
    """Read a class-per-folder tree; classes and pictures sorted by name.

    Args:
        root: the folder that holds one folder per class.
        skip_broken: leave out pictures that cannot be read, with a warning.
        prefix: put before every key, which is otherwise the POSIX path below `root`.

    Raises:
        DataError: `root` is missing or has no class folders, a class folder has no pictures, two have one class name,
            or pictures are broken.
    """
    root = Path(root)
    if not root.is_dir():
        raise _missing(root)
    folders = _class_folders(root)
    if not folders:
        raise DataError(f"folder '{root}' has no class folders: put the pictures of each class in a folder of its own.")
    names = [class_name(each) for each in folders]
    for name in names:
        if names.count(name) > 1:
            twins = listed(each for each in folders if class_name(each) == name)
            raise DataError(f"folders {twins} in '{root}' give the same class name '{name}': rename or join them.")
    found = readable(root, [key for each in folders for key in _pictures(root, each)], skip_broken)
    labels = [folders.index(key.partition("/")[0]) for key in found]
    for label in range(len(folders)):
        if label not in labels:
            raise DataError(f"class folder '{root / folders[label]}' has no readable pictures: add some or remove it.")
    return ImageSet(
        name=prefix.rstrip("/") or root.name,
        classes=tuple(names),
        labels=tuple(labels),
        keys=tuple(prefix + key for key in found),
        load=partial(_load, root, prefix),
    )


def _split_paths(config: FolderConfig) -> dict[str, Path]:
    """Return the tree of each ready-made split; empty where `root` is one tree of classes."""
    if config.root is None:
        given = {"train": config.train, "val": config.val, "test": config.test}
        return {split: Path(path) for split, path in given.items() if path is not None}
    root = Path(config.root)
    found = set(_class_folders(root)) if root.is_dir() else set()
    if not {"train"} < found <= set(SPLITS):
        return {}
    if "test" not in found:
        raise DataError(f"'{root}' holds 'train' and 'val' but no 'test': name the trees by data.train and data.test.")
    return {split: root / split for split in SPLITS if split in found}


def _load(root: Path, prefix: str, key: str) -> Image.Image:
    key = key.removeprefix(prefix)
    return read_image(root / key, key)


def _class_folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(root: Path, each: str) -> list[str]:
    found = []
    for where, below, files in os.walk(root / each, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(where, name).relative_to(root).as_posix() for name in files if is_picture(Path(name))]
    if not found:
        raise DataError(
            f"class folder '{root / each}' has no pictures (looked for {' '.join(SUFFIXES)}): add some or remove it."
        )
    return sorted(found)


def _missing(root: Path) -> DataError:
    if root.exists():
        return DataError(f"'{root}' is a file: give the folder that holds one folder per class.")
    siblings = [path.name for path in root.parent.iterdir() if path.is_dir()] if root.parent.is_dir() else []
    return DataError(f"folder '{root}' does not exist.{near_miss(root.name, siblings)} Check the path.")


def _check_distinct(paths: dict[str, Path]) -> None:
    seen: dict[Path, str] = {}
    for split, path in paths.items():
        other = seen.setdefault(path.resolve(), split)
        if other != split:
            raise DataError(f"{other} and {split} are the same folder '{path}': keep their pictures apart.")


def _check_classes(train: ImageSet, images: ImageSet, split: str) -> None:
    def only(one: Sequence[str], other: Sequence[str], where: str) -> list[str]:
        extra = [name for name in one if name not in other]
        return [f"only {where} has {listed(extra)}"] if extra else []

    differences = only(train.classes, images.classes, "train") + only(images.classes, train.classes, split)
    if differences:
        raise DataError(f"train and {split} have different class folders: {'; '.join(differences)}.")
