"""The folders of published data sets: finding them, and saying in one line what they lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError, near_miss
from .images import listed


def published_folder(root: str, name: str, needed: Sequence[str], remedy: str) -> Path:
    """Find the folder of a data set: ``root / name``, or `root` itself where that is the folder.

    Args:
        root: what the user gave; ``~`` is expanded.
        name: the folder's published name.
        needed: files and folders that it must hold.
        remedy: where to get the data set.

    Raises:
        DataError: there is no such folder, or it lacks something that is needed.
    """
    given = Path(root).expanduser()
    if not given.is_dir():
        siblings = [path.name for path in given.parent.iterdir() if path.is_dir()] if given.parent.is_dir() else []
        raise DataError(
            f"folder '{given}' does not exist.{near_miss(given.name, siblings)} Check the path, or {remedy}."
        )
    folder = given / name if (given / name).is_dir() else given
    absent = [each for each in needed if not (folder / each).exists()]
    if folder == given and len(absent) == len(needed):
        raise DataError(f"'{given}' has no folder '{name}' and is none itself (no {listed(needed)}): {remedy}.")
    if absent:
        raise DataError(f"'{folder}' has no {listed(absent)}: {remedy}.")
    return folder


def check_pictures(folder: Path, keys: Sequence[str], remedy: str) -> None:
    """Check that a data set's lists name files that are there, each once; files are looked for, not opened.

    Args:
        folder: what `keys` are relative to.
        keys: the pictures of all splits.
        remedy: where to get the data set.

    Raises:
        DataError: a picture is listed twice or missing.
    """
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise DataError(f"the lists beside '{folder}' name {listed(twice)} more than once: {remedy}.")
    absent = [key for key in keys if not (folder / key).is_file()]
    if absent:
        raise DataError(f"{len(absent):,} of {len(keys):,} pictures are not in '{folder}', {listed(absent)}: {remedy}.")
