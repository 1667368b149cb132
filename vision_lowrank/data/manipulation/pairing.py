"""Finding and copying pictures in folders; pairing pictures with masks, and edits with originals, by their stems."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from ...errors import DataError, near_miss
from ..find_pictures import find_pictures
from ..images import SUFFIXES, listed
from .masks import read_mask

MASK_SUFFIXES = ("_gt", "_mask", "_forged")
SEPARATORS = "_-. "
_READERS = 8


def pictures_under(root: Path, folder: str) -> list[str]:
    """List the pictures in ``root/folder`` and below, POSIX paths relative to `root`, sorted, without hidden ones.

    Raises:
        DataError: there is no such folder.
    """
    top = root / folder
    if not top.is_dir():
        found = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
        raise DataError(f"'{root}' has no folder '{folder}'.{near_miss(folder, found)} Check the path.")
    return sorted(f"{folder}/{path}" for path in find_pictures(top).check(top).pictures)


def some_pictures(root: Path, folder: str) -> list[str]:
    """Return :func:`pictures_under`, at least one.

    Raises:
        DataError: the folder is missing or has no pictures.
    """
    paths = pictures_under(root, folder)
    if not paths:
        raise DataError(f"'{root / folder}' has no pictures (looked for {' '.join(SUFFIXES)}): add some.")
    return paths


def mask_key(path: str) -> str:
    """Strip a path to what picture and mask share: the path below their folders, without ending and mask suffixes."""
    below = PurePosixPath(*PurePosixPath(path).parts[1:]).with_suffix("").as_posix()
    for suffix in MASK_SUFFIXES:
        if len(below) > len(suffix):
            below = below.removesuffix(suffix)
    return below


def by_mask_key(paths: Sequence[str]) -> dict[str, str]:
    """Return `paths` by :func:`mask_key`.

    Raises:
        DataError: two have one key.
    """
    found: dict[str, str] = {}
    for path in paths:
        if found.setdefault(mask_key(path), path) != path:
            raise DataError(f"'{found[mask_key(path)]}' and '{path}' have one stem: rename one, masks go by stems.")
    return found


def paired(root: Path, images: Sequence[str], masks: Sequence[str]) -> list[str]:
    """Pair every picture with its mask: by stem, or by sorted order, with a warning, where no stem fits at all.

    Raises:
        DataError: their numbers differ, or only some stems fit; names the files without a partner.
    """
    of_image, of_mask = by_mask_key(images), by_mask_key(masks)
    lonely = [path for key, path in of_image.items() if key not in of_mask]
    widowed = [path for key, path in of_mask.items() if key not in of_image]
    if not lonely and not widowed:
        return [of_mask[mask_key(path)] for path in images]
    if len(images) == len(masks) == len(lonely):
        warnings.warn(
            f"no picture in '{root}' has a mask of its own name, such as {listed(images, 1)}: paired by sorted order. "
            "Check that this is right, or rename the masks.",
            stacklevel=3,
        )
        return sorted(masks)
    problems = [f"no mask for {listed(lonely, 10)}"] if lonely else []
    problems += [f"no picture for {listed(widowed, 10)}"] if widowed else []
    raise DataError(
        f"'{root}' has {len(images):,} pictures and {len(masks):,} masks that do not pair by stem: "
        f"{'; '.join(problems)}. Add or remove them."
    )


def edited_masks(root: Path, masks: Sequence[str]) -> np.ndarray:
    """Tell which masks have any white pixel: (N,) bool. Reads them all, so a damaged one shows now.

    Raises:
        DataError: a mask is missing or damaged.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda path: bool(read_mask(root / path, path).any()), masks)
        return np.fromiter(found, dtype=bool, count=len(masks))


def original_of(stem: str, stems: dict[str, str]) -> str | None:
    """Find an edit's original: of the same stem, or of the longest one that starts it before ``_ - .`` or space.

    Args:
        stem: of the edit's file name, such as ``a1_e3``.
        stems: stem -> path of the real pictures.
    """
    for end in range(len(stem), 0, -1):
        if (end == len(stem) or stem[end] in SEPARATORS) and stem[:end] in stems:
            return stems[stem[:end]]
    return None


def copied(source: Path, stem: Path) -> None:
    """Copy a file to `stem` plus its own ending in lower case, byte for byte."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, stem.with_name(stem.name + source.suffix.lower()))
