"""Which files below a folder are pictures, and what else lies there: one rule for training, predicting and editing.

A picture is a file whose name ends like one or whose first bytes are one's; whether it can be read is found later.
Left out, and counted, are hidden files and folders (``.x``), folders that systems make (``__MACOSX``), files that are
no pictures, and folders seen before: links are followed, each folder once, so that loops end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .images import SUFFIXES, listed

NO_PICTURE, HIDDEN, SYSTEM, SEEN, SUBFOLDER = "no picture", "hidden", "made by a system", "seen before", "sub-folder"

_SYSTEM = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*")


@dataclass(frozen=True)
class FoundPictures:
    """What lies below a folder; paths are POSIX, relative to it.

    Attributes:
        pictures: by name, the files of a folder before those of its sub-folders.
        left_out: why -> files and folders that are not looked at.
        problems: folders that cannot be listed -> the reason.
    """

    pictures: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]
    problems: Mapping[str, str]

    def check(self, root: Path) -> FoundPictures:
        """Return itself.

        Raises:
            DataError: a folder below `root` cannot be listed.
        """
        for folder, reason in self.problems.items():
            raise DataError(f"folder '{root / folder}' cannot be read: {reason}. Mend its permissions or remove it.")
        return self


def find_pictures(root: Path, recursive: bool = True, seen: set[object] | None = None) -> FoundPictures:
    """Find the pictures of a folder.

    Args:
        root: the folder.
        recursive: look into sub-folders too.
        seen: identities of folders that were looked into already, see :func:`identity`; added to.
    """
    pictures: list[str] = []
    left_out: dict[str, list[str]] = {}
    problems: list[OSError] = []
    seen = set() if seen is None else seen
    seen.add(identity(root))
    for parent, folders, files in os.walk(root, onerror=problems.append, followlinks=True):
        place = Path(parent).relative_to(root)
        below = [(name, _folder_reason(Path(parent, name), recursive, seen)) for name in sorted(folders)]
        folders[:] = [name for name, why in below if not why]
        named = [(name, _file_reason(Path(parent, name))) for name in sorted(files)]
        pictures += [(place / name).as_posix() for name, why in named if not why]
        for name, why in (*named, *below):
            if why:
                left_out.setdefault(why, []).append((place / name).as_posix())
    reasons = {os.path.relpath(each.filename, root): each.strerror or str(each) for each in problems}
    return FoundPictures(tuple(pictures), {why: tuple(names) for why, names in left_out.items()}, reasons)


def class_folders(root: Path) -> list[str]:
    """List the folders of a folder by name, without hidden ones and those that systems make."""
    return sorted(
        path.name
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name.lower() not in _SYSTEM
    )


def joined_reasons(found: Iterable[Mapping[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    """Join several ``left_out``."""
    joined: dict[str, tuple[str, ...]] = {}
    for each in found:
        for why, names in each.items():
            joined[why] = (*joined.get(why, ()), *names)
    return joined


def said(left_out: Mapping[str, tuple[str, ...]]) -> str:
    """Say what was left out, ``left out: 3 no picture ('a.txt', …), 1 hidden ('.git')``; empty where nothing was."""
    parts = [f"{len(names):,} {why} ({listed(names)})" for why, names in left_out.items() if names]
    return f"left out: {', '.join(parts)}" if parts else ""


def identity(folder: Path) -> object:
    """Return what is the same for one folder under two names."""
    try:
        status = os.stat(folder)
    except OSError:
        return folder  # the walk meets the same error and reports it
    return status.st_dev, status.st_ino


def is_picture(path: Path) -> bool:
    """Tell whether a file is a picture, by the end of its name, or else by its first bytes."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")


def _file_reason(path: Path) -> str:
    """Tell why a file is left out; empty where it is a picture."""
    if path.name.startswith("."):
        return HIDDEN
    return "" if is_picture(path) else NO_PICTURE


def _folder_reason(path: Path, recursive: bool, seen: set[object]) -> str:
    """Tell why a folder is not looked into; empty where it is, and then it is seen."""
    if path.name.startswith("."):
        return HIDDEN
    if path.name.lower() in _SYSTEM:
        return SYSTEM
    if not recursive:
        return SUBFOLDER
    own = identity(path)
    if own in seen:
        return SEEN
    seen.add(own)
    return ""


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """Return what sorts names as people count: 2.jpg before 10.jpg."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]
