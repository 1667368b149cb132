"""Pictures in one folder per class: ``root/cat/1.jpg``, with ready-made splits or one tree to split.

The class of a picture is the first folder below the tree's root; deeper folders are searched too
(:mod:`.find_pictures`). Underscores in folder names become spaces in class names.

A root whose folders are called ``train`` and ``test`` (perhaps ``val``), or as usual instead (``Training``, ``valid``,
``test_set``, see :mod:`.split_names`), each a tree, has ready-made splits: so lie the data sets of LAMDA-PILOT,
``data/<name>/{train,test}/<class>/``. Labels are the ranks of the sorted folder names, as ImageFolder's. What was taken
for what, and what was left out, is in the notes of the sets.

Of CoACT's 16 data sets, the reader ``coop`` serves dtd, eurosat, fgvc_aircraft, food101, oxford_flowers, oxford_pets,
stanford_cars and sun397; ``cifar100``, ``cub200`` and ``mini_imagenet`` have readers of their own; caltech101 (102
classes there, 100 in CoOp's), country211, gtsrb, resisc45 and voc2007 are read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from .find_pictures import SEEN, FoundPictures, class_folders, find_pictures, said
from .images import SUFFIXES, listed, read_image, readable
from .options import Fractions, Templates, class_name
from .samplers import split_by_group
from .split_names import split_of, splits_among, taken_for

BESIDE = "beside the folders"
_LOOKED = " ".join(SUFFIXES)


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
        DataError: a folder is missing, holds no pictures or another set of classes, pictures are broken, or the folders
            in `root` are splits but for one, or lack train or test.
    """
    given = {"train": config.train, "val": config.val, "test": config.test}
    paths = {split: Path(path) for split, path in given.items() if path is not None}
    notes: tuple[str, ...] = ()
    if config.root is not None:
        names = _ready_splits(Path(config.root))
        if not names:
            images = read_tree(config.root, skip_broken=config.skip_broken)
            train, val, test = split_by_group(images, config.fractions, config.seed, images.keys)
            return Splits(train, val, {"test": test}, templates=config.templates)
        paths = {split: Path(config.root) / name for split, name in names.items()}
        loose = find_pictures(Path(config.root), recursive=False).pictures
        notes = (f"ready-made splits: {taken_for(names)}", *([said({BESIDE: loose})] if loose else []))
    _check_distinct(paths)
    trees = {split: read_tree(path, config.skip_broken, prefix=f"{split}/") for split, path in paths.items()}
    train = replace(trees["train"], notes=(*notes, *trees["train"].notes))
    for split, images in trees.items():
        _check_classes(train, images, split)
    return Splits(train, trees.get("val", train.subset([])), {"test": trees["test"]}, templates=config.templates)


def read_tree(root: str | Path, skip_broken: bool = False, prefix: str = "") -> ImageSet:
    """Read a class-per-folder tree; classes and pictures sorted by name. Its notes say what was left out.

    Args:
        root: the folder that holds one folder per class.
        skip_broken: leave out pictures that cannot be read, with a warning.
        prefix: put before every key, which is otherwise the POSIX path below `root`.

    Raises:
        DataError: `root` is missing or has no class folders, a class folder has no pictures, two have one class name,
            a folder cannot be listed, or pictures are broken.
    """
    root = Path(root)
    if not root.is_dir():
        raise _missing(root)
    folders = class_folders(root)
    if not folders:
        raise DataError(f"folder '{root}' has no class folders: put the pictures of each class in a folder of its own.")
    names = [class_name(each) for each in folders]
    for name in names:
        if names.count(name) > 1:
            twins = listed(each for each in folders if class_name(each) == name)
            raise DataError(f"folders {twins} in '{root}' give the same class name '{name}': rename or join them.")
    inside = find_pictures(root).check(root)
    keys, left_out = _by_class(root, folders, inside)
    found = readable(root, keys, skip_broken)
    labels = [folders.index(key.partition("/")[0]) for key in found]
    for label in range(len(folders)):
        if label not in labels:
            raise DataError(f"class folder '{root / folders[label]}' has no readable pictures: add some or remove it.")
    note = said(left_out)
    return ImageSet(
        name=prefix.rstrip("/") or root.name,
        classes=tuple(names),
        labels=tuple(labels),
        keys=tuple(prefix + key for key in found),
        load=partial(_load, root, prefix),
        notes=(f"'{root}': {note}",) if note else (),
    )


def _ready_splits(root: Path) -> dict[str, str]:
    """Return split -> folder where the folders in `root` are ready-made splits; empty where they are classes.

    They are splits where two or more are called so, where none is called otherwise, or where one that is holds class
    folders itself: ``train`` beside ``tram``, pictures in both, are classes.
    """
    names = class_folders(root) if root.is_dir() else []
    others = [name for name in names if split_of(name) is None]
    called = [name for name in names if name not in others]
    kinds = {split_of(name) for name in called}
    if not called or not (len(kinds) > 1 or not others or any(_holds_classes(root / name) for name in called)):
        return {}
    if others:
        raise DataError(
            f"'{root}' holds {_quoted(called)}, called as splits are, and {listed(others)}, called as none: move the "
            "latter out, or name the trees by data.train, data.val and data.test."
        )
    found = splits_among(called, f"'{root}'")
    lacking = [f"'{split}'" for split in ("train", "test") if split not in found]
    if lacking:
        only = f", or split one tree by data.root='{root / called[0]}'" if len(called) == 1 else ""
        raise DataError(
            f"'{root}' holds {_quoted(called)} but no {' and no '.join(lacking)}: name the trees by data.train and "
            f"data.test{only}."
        )
    return found


def _holds_classes(folder: Path) -> bool:
    """Tell whether a folder has sub-folders and no pictures beside them."""
    return bool(class_folders(folder)) and not find_pictures(folder, recursive=False).pictures


def _by_class(
    root: Path, folders: Sequence[str], inside: FoundPictures
) -> tuple[list[str], Mapping[str, tuple[str, ...]]]:
    """Return the keys of all classes, sorted within each, and what was left out, loose pictures too.

    Raises:
        DataError: a class folder has no pictures.
    """
    keys: dict[str, list[str]] = {each: [] for each in folders}
    loose = tuple(key for key in inside.pictures if "/" not in key)
    for key in inside.pictures:
        if "/" in key:
            keys[key.partition("/")[0]].append(key)
    for each, found in keys.items():
        if not found:
            again = each in inside.left_out.get(SEEN, ())
            why = (
                "is another class's folder under a second name" if again else f"has no pictures (looked for {_LOOKED})"
            )
            raise DataError(f"class folder '{root / each}' {why}: {'remove' if again else 'add some or remove'} it.")
    return [key for each in folders for key in sorted(keys[each])], {**inside.left_out, BESIDE: loose}


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)


def _load(root: Path, prefix: str, key: str) -> Image.Image:
    key = key.removeprefix(prefix)
    return read_image(root / key, key)


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
