"""Which files a saved model looks at, and what each is called in an output folder.

A file that is given is an input, whatever it is. In a folder, every entry is one whose name ends like a picture's or
whose first bytes are a picture's; hidden files and folders and the scan's own pictures are none. Links to folders are
followed, each folder once, so that loops end.

The *name* of an input is its path below the folder that all inputs share: output trees mirror the input tree, and
same-named files in sub-folders stay apart.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.images import SUFFIXES
from ..errors import DataError
from ..files import sibling

# Beside those that data sets may hold: what cameras write and Pillow may or may not read, but nobody wants left out.
PICTURE_SUFFIXES = (*SUFFIXES, ".jpe", ".jfif", ".avif", ".heic", ".heif")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*")
_OUTPUTS = ("heatmaps", "overlays", "thumbnails")  # sub-folders of an output folder that hold pictures
_LONGEST_NAME = 200  # bytes; file systems take 255, and endings are added


@dataclass(frozen=True)
class InputFile:
    """One input.

    Attributes:
        path: the file, as it was given or found.
        name: POSIX path below the folder that all inputs share; unique.
        problem: why there is nothing to open, or empty.
    """

    path: Path
    name: str
    problem: str = ""


@dataclass(frozen=True)
class Inputs:
    """The inputs of a command.

    Attributes:
        sources: in the order given; within a folder by name, files before sub-folders.
        others: number of files in the folders that are no pictures by name and first bytes.
    """

    sources: tuple[InputFile, ...]
    others: int


def find_files(paths: Sequence[Path], recursive: bool = False, leave_out: Path | None = None) -> Inputs:
    """Find the inputs that files, folders and globs name, each once.

    Args:
        paths: files and folders; one that is not there is taken as a glob.
        recursive: look into sub-folders too.
        leave_out: the output folder, which may be or be in an input folder: the pictures written there are no inputs.

    Raises:
        DataError: a path does not exist and matches nothing, or there is no input at all.
    """
    seen_folders = {_identity(leave_out / name) for name in _OUTPUTS} if leave_out is not None else set()
    found: dict[Path, tuple[Path, str, Path]] = {}  # by the real folder and the file's own name
    bases, others = [], 0
    for given in (each for path in paths for each in _matches(path)):
        is_folder = os.path.isdir(given)
        base = given.resolve() if is_folder else given.parent.resolve()
        bases.append(str(base))
        for path, problem in _entries(given, recursive, seen_folders) if is_folder else [(given, "")]:
            if not (problem or not is_folder or _is_picture(path)):
                others += 1
                continue
            below = path.relative_to(given) if is_folder else Path(given.name)
            found.setdefault(path.parent.resolve() / path.name, (path, problem, base / below))
    if not found:
        remedy = "" if recursive else " Use --recursive to look into sub-folders."
        raise DataError(f"no pictures in {', '.join(repr(str(path)) for path in paths)}.{remedy}")
    common = Path(os.path.commonpath(bases))
    sources = (InputFile(path, at.relative_to(common).as_posix(), problem) for path, problem, at in found.values())
    return Inputs(tuple(sources), others)


def output_names(name: str) -> dict[str, tuple[str, ...]]:
    """Return kind of output file -> the paths below the output folder for the input of that name.

    They are the name and an ending; its last part is cut, with a hash, where it leaves no room for that.
    """
    folder, slash, last = name.rpartition("/")
    raw = os.fsencode(last)
    if len(raw) > _LONGEST_NAME:
        last = os.fsdecode(raw[: _LONGEST_NAME - 17]) + "-" + hashlib.sha256(raw).hexdigest()[:16]
    stem = folder + slash + last
    return {
        "heatmap": (f"heatmaps/{stem}.png",),
        "overlay": (f"overlays/{stem}.png",),
        "npy": (f"heatmaps/{stem}.npy",),
        "thumbnails": (f"thumbnails/picture/{stem}.jpg", f"thumbnails/overlay/{stem}.jpg"),
    }


def _matches(path: Path) -> list[Path]:
    """Return the path itself where there is something, else what it matches as a glob."""
    if os.path.lexists(path):
        return [path]
    if matches := sorted(glob.glob(str(path), recursive=True)):
        return [Path(match) for match in matches]
    missing = "matches nothing" if glob.has_magic(str(path)) else "does not exist"
    raise DataError(f"'{path}' {missing}.{sibling(path)}")


def _entries(folder: Path, recursive: bool, seen: set[object]) -> Iterator[tuple[Path, str]]:
    """Yield files of a folder, not the hidden ones, and sub-folders that cannot be listed with the reason."""
    problems: list[OSError] = []
    seen.add(_identity(folder))
    for parent, subfolders, files in os.walk(folder, onerror=problems.append, followlinks=True):
        kept = sorted(name for name in subfolders if recursive and not name.startswith("."))
        subfolders[:] = []
        for name in kept:
            identity = _identity(Path(parent, name))
            if identity not in seen:
                seen.add(identity)
                subfolders.append(name)
        yield from ((Path(parent, name), "") for name in sorted(files) if not name.startswith("."))
    for error in problems:
        yield Path(error.filename), f"folder '{error.filename}' cannot be read: {error.strerror}."


def _is_picture(path: Path) -> bool:
    """Tell whether a file is a picture, by the end of its name, or else by its first bytes."""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return True
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")


def _identity(folder: Path) -> object:
    """Return what is the same for one folder under two names."""
    try:
        status = os.stat(folder)
    except OSError:
        return folder  # the walk meets the same error and reports it
    return status.st_dev, status.st_ino
