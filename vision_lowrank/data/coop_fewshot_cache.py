"""CoOp's few-shot selections on disk: ``split_fewshot/shot_{K}-seed_{S}.pkl`` below a data set's folder.

Each file is a pickle ``{"train": [Datum, …], "val": [Datum, …]}`` (ImageNet: train only) of Dassl's ``Datum`` objects
with attributes ``_impath`` (absolute, of the machine that wrote it), ``_label``, ``_domain`` and ``_classname``. A
pickle may run any code, so it is read with :mod:`vision_lowrank.data.safe_pickle` and may refer to one class, called
``Datum``. A picture is found again by the longest end of its path that the split lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError
from .base import ImageSet
from .safe_pickle import read_pickle

FOLDER = "split_fewshot"


class Datum:
    """Stands for ``dassl.data.datasets.base_dataset.Datum``; its attributes come from the file."""

    _impath: str
    _label: int


def cached_files(folder: Path) -> list[Path]:
    """List the selections below a data set's folder, sorted by name."""
    return sorted((folder / FOLDER).glob("shot_*-seed_*.pkl"))


def cached_draw(
    folder: Path, train: ImageSet, val: ImageSet, shots: int, seed: int
) -> tuple[ImageSet, ImageSet | None] | None:
    """Read the selection for `shots` and `seed`; None where there is no such file.

    Args:
        folder: the data set's folder.
        train, val: the full lists that the selection is part of.
        shots, seed: which selection.

    Raises:
        DataError: as :func:`read_selection`.
    """
    path = folder / FOLDER / f"shot_{shots}-seed_{seed}.pkl"
    return read_selection(path, train, val) if path.is_file() else None


def read_selection(path: Path, train: ImageSet, val: ImageSet) -> tuple[ImageSet, ImageSet | None]:
    """Read the pictures that a file selects from `train` and `val`, in its order; the latter None where it has none.

    Raises:
        DataError: the file is damaged, holds other objects than few-shot selections do, or names a picture that its
            list has not or has with another label.
    """
    tree = _unpickled(path)
    chosen = _found(path, tree["train"], train)
    return chosen, _found(path, tree["val"], val) if tree.get("val") else None


def _unpickled(path: Path) -> dict[str, list[Datum]]:
    tree = read_pickle(path, "few-shot selection", lambda _, name: Datum if name == "Datum" else None, "remove it")
    lists = [tree.get(split, []) for split in ("train", "val")] if isinstance(tree, dict) and "train" in tree else [()]
    if not all(isinstance(items, list) and all(map(_is_datum, items)) for items in lists):
        raise DataError(f"few-shot selection '{path}' is not a dictionary of lists of pictures: remove it.")
    return tree


def _is_datum(item: Any) -> bool:
    return isinstance(item, Datum) and isinstance(getattr(item, "_impath", None), str) and hasattr(item, "_label")


def _found(path: Path, items: Iterable[Datum], images: ImageSet) -> ImageSet:
    where = {key: index for index, key in enumerate(images.keys)}
    indices = []
    for item in items:
        parts = PurePosixPath(item._impath.replace("\\", "/")).parts
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        index = next((where[tail] for tail in tails if tail in where), None)
        if index is None or images.labels[index] != item._label:
            what = "is not in the split file" if index is None else f"has another label there than {item._label}"
            raise DataError(f"few-shot selection '{path}': picture '{item._impath}' {what}: remove the selection.")
        indices.append(index)
    return images.subset(indices)
