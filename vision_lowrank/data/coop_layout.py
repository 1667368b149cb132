"""Where a CoOp data set lies on disk, and what its split files say: pictures, labels and class names, in file order.

The order matters: the few-shot samplers draw from the lists as they stand. Sources, by name in the table:

* ``json``: ``split_zhou_*.json``, ``{"train": [[path, label, class name], …], "val": …, "test": …}``;
* ``variants``: ``variants.txt`` (line i names label i) and ``images_variant_{train,val,test}.txt`` ("number name");
* ``imagenet``: class folders below ``train`` and ``val``, labels = ranks of the sorted wnids. Pictures are sorted by
  name; CoOp takes them as the file system lists them, so its ImageNet selections differ from machine to machine;
* ``numbered`` (ImageNet-V2): folder "i" belongs to line i of ``classnames.txt``;
* ``wnids`` (Sketch, -A, -R): one folder per wnid; only the classes that have a folder, numbered in sorted order.

``classnames.txt`` has one "wnid name words" per line in the order of the wnids. A variant of ImageNet without its own
copy reads that of ``imagenet``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from .coop_sets import SPLITS_PAGE, CoopSet
from .images import listed, named_as_picture
from .options import class_name

SPLITS = ("train", "val", "test")


class Place(NamedTuple):
    """A data set's folder, and in it the picture folder and the split file, None where they are missing."""

    folder: Path
    images: Path | None
    split: Path | None


class Picture(NamedTuple):
    """One line of a split: POSIX path below the picture folder, and label."""

    key: str
    label: int


class Listing(NamedTuple):
    """Class names, index = label, and the pictures of train, val and test."""

    classes: tuple[str, ...]
    splits: dict[str, list[Picture]]


def locate(spec: CoopSet, root: Path) -> Place | None:
    """Find the most complete of the folders that a data set may have below `root`; None where there is none."""
    places = [_place(spec, root, root / name) for name in spec.folders if (root / name).is_dir()]
    return max(places, key=lambda place: 2 - place.count(None), default=None)


def missing(spec: CoopSet, root: Path, place: Place | None) -> list[str]:
    """List what a data set lacks, one sentence for each thing with where to get it; empty where it is all there."""
    pictures = f"get the pictures from {spec.page}"
    if spec.torchvision:
        pictures += " or let torchvision download them (data.download=true, data check --download)"
    if place is None:
        names = " nor ".join(f"'{name}'" for name in spec.folders)
        none = f"neither folder {names} exists" if len(spec.folders) > 1 else f"folder {names} does not exist"
        return [f"data set '{spec.key}': in '{root}' {none}: {pictures}, {spec.split} from {_split_page(spec)}."]
    lacking = []
    if place.images is None:
        names = " or ".join(f"'{Path(each, inside)}'" for each in spec.images for inside in spec.inside or ("",))
        lacking.append(f"data set '{spec.key}': '{place.folder}' has no picture folder {names}: {pictures}.")
    if place.split is None:
        lacking.append(_no_split(spec, place.folder / spec.split))
    return lacking


def read_listing(spec: CoopSet, place: Place) -> Listing:
    """Read the pictures of every split.

    Args:
        spec: the data set.
        place: where it lies; must be complete.

    Raises:
        DataError: a split file is missing or malformed, or the labels of train or test are not exactly 0…C-1.
    """
    assert place.images is not None
    assert place.split is not None
    if spec.source == "json":
        listing = _from_json(place.split)
    elif spec.source == "variants":
        listing = _from_variants(spec, place.split)
    else:
        listing = _from_folders(spec, place.images, _class_names(place.split))
    _check_labels(spec, listing)
    return listing


def _place(spec: CoopSet, root: Path, folder: Path) -> Place:
    candidates = [folder / each for each in spec.images]
    images = next((each for each in candidates if all((each / name).is_dir() for name in spec.inside or ("",))), None)
    splits = [folder / spec.split]
    if spec.split == "classnames.txt":
        splits.append(root / "imagenet" / spec.split)
    return Place(folder, images, next((path for path in splits if path.is_file()), None))


def _split_page(spec: CoopSet) -> str:
    return "the same archive" if spec.source == "variants" else SPLITS_PAGE


def _no_split(spec: CoopSet, path: Path) -> str:
    return (
        f"data set '{spec.key}': split file '{path}' is missing: get it from {_split_page(spec)}; "
        "results on a split of our own would not be comparable."
    )


def _from_json(path: Path) -> Listing:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        rows = {split: [(str(key), int(label), str(name)) for key, label, name in tree[split]] for split in SPLITS}
    except (ValueError, TypeError, KeyError):
        raise DataError(
            f"split file '{path}' is not {{'train': [[path, label, class name], …], 'val': …, 'test': …}}: "
            f"get it again from {SPLITS_PAGE}."
        ) from None
    names: dict[int, str] = {}
    for _, label, name in (row for split in SPLITS for row in rows[split]):
        if names.setdefault(label, name) != name:
            raise DataError(f"split file '{path}' calls label {label} '{names[label]}' and '{name}': give it one name.")
    if sorted(names) != list(range(len(names))):
        raise DataError(f"split file '{path}' has {len(names)} labels, but they are not 0 to {len(names) - 1}.")
    splits = {split: [Picture(key, label) for key, label, _ in rows[split]] for split in SPLITS}
    return Listing(tuple(class_name(names[label]) for label in range(len(names))), splits)


def _from_variants(spec: CoopSet, variants: Path) -> Listing:
    names = _lines(variants)
    numbers = {name: label for label, name in enumerate(names)}
    splits = {}
    for split in SPLITS:
        path = variants.with_name(f"images_variant_{split}.txt")
        if not path.is_file():
            raise DataError(_no_split(spec, path))
        rows = [line.partition(" ") for line in _lines(path)]
        unknown = [name for _, _, name in rows if name not in numbers]
        if unknown:
            raise DataError(f"split file '{path}' names {listed(dict.fromkeys(unknown))}, not in '{variants.name}'.")
        splits[split] = [Picture(f"{number}.jpg", numbers[name]) for number, _, name in rows]
    return Listing(tuple(map(class_name, names)), splits)


def _from_folders(spec: CoopSet, images: Path, names: dict[str, str]) -> Listing:
    if spec.source == "numbered":
        folders = [str(label) for label in range(len(names))]
        absent = [each for each in folders if not (images / each).is_dir()]
        if absent:
            raise DataError(f"data set '{spec.key}': '{images}' has no folder {listed(absent)}: unpack it again.")
        return Listing(tuple(names.values()), {"train": [], "val": [], "test": _pictures(images, "", folders)})
    if spec.source == "wnids":
        folders = _class_folders(images)
        parts = {"train": [], "val": [], "test": _pictures(images, "", folders)}
    else:
        folders = _class_folders(images / "train")
        odd = sorted(set(folders) ^ set(_class_folders(images / "val")))
        if odd:
            raise DataError(f"class folders {listed(odd)} are only in one of train and val of '{images}'.")
        parts = {"train": _pictures(images, "train/", folders), "val": [], "test": _pictures(images, "val/", folders)}
    unknown = [wnid for wnid in folders if wnid not in names]
    if unknown:
        raise DataError(f"data set '{spec.key}': '{images}' has folders {listed(unknown)} that no class name is for.")
    return Listing(tuple(names[wnid] for wnid in folders), parts)


def _class_folders(images: Path) -> list[str]:
    with os.scandir(images) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _pictures(images: Path, prefix: str, folders: Iterable[str]) -> list[Picture]:
    return [
        Picture(f"{prefix}{folder}/{name}", label)
        for label, folder in enumerate(folders)
        for name in sorted(os.listdir(images / prefix / folder))
        if named_as_picture(name)
    ]


def _class_names(path: Path) -> dict[str, str]:
    rows = [line.partition(" ") for line in _lines(path)]
    return {wnid: class_name(name) for wnid, _, name in rows}


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _check_labels(spec: CoopSet, listing: Listing) -> None:
    for split, pictures in listing.splits.items():
        if split == "val" or not (pictures or split == "test"):
            continue
        present = {picture.label for picture in pictures}
        absent = [name for label, name in enumerate(listing.classes) if label not in present]
        if absent:
            raise DataError(
                f"data set '{spec.key}': {split} has no pictures of {listed(absent)}, {len(absent)} of "
                f"{len(listing.classes)} classes: complete the data set."
            )
