"""CIFAR-100 from its official folder for Python: ``cifar-100-python`` with the files ``train``, ``test`` and ``meta``.

Each file is a pickle of Python 2. ``train`` and ``test`` hold ``data``, uint8 (N, 3072), one row per picture: 32 x 32
red values row by row, then green, then blue; and ``fine_labels``, N numbers 0…99. ``meta`` names the labels
(``fine_label_names``, in alphabetical order). Pictures keep the order of the arrays: the fixed shots of few-shot
class-incremental learning are positions in ``train``, and a copy as picture folders has another order.

The files are read with :mod:`vision_lowrank.data.safe_pickle`. numpy's own constructors trust what a pickle says of
memory, so an array is taken apart by a stand-in of ours, which keeps its bytes and shape only.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field

from ..config.marks import Folder
from ..config.schema import Section
from ..errors import DataError
from ..registry import register
from .base import ImageSet, Splits
from .options import Templates, class_name
from .published import published_folder
from .safe_pickle import read_pickle

FOLDER, FILES = "cifar-100-python", ("train", "test", "meta")
SIDE, CHANNELS = 32, 3
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
REMEDY = f"unpack 'CIFAR-100 python version' from {PAGE} there, or set data.download=true"
AGAIN = f"unpack 'CIFAR-100 python version' from {PAGE} again"


class Cifar100Config(Section):
    """Options of ``data: {type: cifar100}``."""

    type: Literal["cifar100"] = "cifar100"
    root: Folder = Field(description="folder that holds `cifar-100-python`, or that folder itself")
    templates: Templates = Field(("a photo of a {}.",), description="prompt templates, {} = class name")
    download: bool = Field(False, description="download and unpack the official archive below `root` if it is missing")


@register(
    "data",
    "cifar100",
    summary="CIFAR-100's official folder, fine labels, original order",
    config=Cifar100Config,
    gives="classes",
)
def cifar100(config: Cifar100Config) -> Splits:
    """Load the official train and test pictures in their order; no val; keys such as ``train/00042``.

    Raises:
        DataError: a file is missing, damaged, refused, or not CIFAR-100's; the download failed.
    """
    if config.download:
        _fetch(Path(config.root).expanduser())
    folder = published_folder(config.root, FOLDER, FILES, REMEDY)
    names = _names(folder / "meta")
    train, test = (_image_set(folder, split, names) for split in ("train", "test"))
    return Splits(train, train.subset([]), {"test": test}, templates=config.templates)


class _Array:
    """Stands for ``numpy.ndarray``: its pickled state (version, shape, dtype, Fortran order, bytes) and no more."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def uint8(self) -> np.ndarray:
        """Decode the array, read-only.

        Raises:
            ValueError: it has another type than uint8, or shape and bytes do not fit.
        """
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, _DType) or _text(dtype.code) != "u1" or not isinstance(data, bytes):
            raise ValueError("not uint8")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


class _DType:
    """Stands for ``numpy.dtype``: the code of a type, such as ``u1``."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Ignore the state: byte order and the like mean nothing for single bytes."""


def _reconstruct(*_: Any) -> _Array:
    return _Array()


_KNOWN = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # the same in numpy 2
}


class _Content(NamedTuple):
    """Pictures (N, 3, 32, 32) uint8 and N labels."""

    pictures: np.ndarray
    labels: tuple[int, ...]


def _image_set(folder: Path, split: str, names: tuple[str, ...]) -> ImageSet:
    labels = _content(folder, split).labels
    if not all(isinstance(label, int) and 0 <= label < len(names) for label in labels):
        raise DataError(f"'{folder / split}' has labels that 'meta' has no name for (0 to {len(names) - 1}): {AGAIN}.")
    keys = tuple(f"{split}/{index:05d}" for index in range(len(labels)))
    return ImageSet(split, names, labels, keys, partial(_load, folder))


def _load(folder: Path, key: str) -> Image.Image:
    split, _, index = key.partition("/")
    return Image.fromarray(np.ascontiguousarray(_content(folder, split).pictures[int(index)].transpose(1, 2, 0)))


@lru_cache(maxsize=2)
def _content(folder: Path, split: str) -> _Content:
    """Load a split's arrays, kept in memory (184 MB for both), in worker processes read anew."""
    tree = _tree(folder / split)
    try:
        rows, labels = tree["data"].uint8(), tuple(tree["fine_labels"])
        pictures = rows.reshape(len(labels), CHANNELS, SIDE, SIDE)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(
            f"'{folder / split}' does not hold N pictures as `data`, uint8 (N, 3072), and N `fine_labels`: {AGAIN}."
        ) from None
    return _Content(pictures, labels)


def _names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(class_name(_text(name)) for name in _tree(path)["fine_label_names"])
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError):
        raise DataError(f"'{path}' does not hold `fine_label_names`: {AGAIN}.") from None


def _tree(path: Path) -> dict[Any, Any]:
    tree = read_pickle(path, "CIFAR-100 file", lambda module, name: _KNOWN.get((module, name)), AGAIN, "bytes")
    return {_text(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}


def _text(value: Any) -> Any:
    """Decode strings of Python 2, which come as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _fetch(root: Path) -> None:
    """Download by torchvision, which checks the archive's MD5; its own reader, which unpickles, is not used."""
    if (root / FOLDER).is_dir() or (root / "meta").is_file():
        return
    from torchvision.datasets import CIFAR100  # only here: reading needs no torch
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        download_and_extract_archive(CIFAR100.url, str(root), filename=CIFAR100.filename, md5=CIFAR100.tgz_md5)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the download of CIFAR-100 failed: {reason}. Try again or see {PAGE}.") from None
