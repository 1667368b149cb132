"""Which files a saved model looks at, and what each is called in an output folder.

A file that is given is an input, whatever it is. In a folder they are the pictures as training finds them
(:mod:`vision_lowrank.data.find_pictures`), but for the scan's own.

The *name* of an input is its path below the folder that all inputs share: output trees mirror the input tree, and
same-named files in sub-folders stay apart.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.find_pictures import NO_PICTURE, SEEN, FoundPictures, find_pictures, identity, joined_reasons
from ..errors import DataError
from ..files import sibling

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
        left_out: why -> what else is in the folders given, POSIX paths below them.
    """

    sources: tuple[InputFile, ...]
    left_out: Mapping[str, tuple[str, ...]]

    @property
    def others(self) -> int:
        """Number of files in the folders that are no pictures by name and first bytes."""
        return len(self.left_out.get(NO_PICTURE, ()))


def find_files(paths: Sequence[Path], recursive: bool = False, leave_out: Path | None = None) -> Inputs:
    """Find the inputs that files, folders and globs name, each once.

    Args:
        paths: files and folders; one that is not there is taken as a glob.
        recursive: look into sub-folders too.
        leave_out: the output folder, which may be or be in an input folder: the pictures written there are no inputs.

    Raises:
        DataError: a path does not exist and matches nothing, or there is no input at all.
    """
    own = {identity(leave_out / name) for name in _OUTPUTS} if leave_out is not None else set()
    seen = set(own)
    found: dict[Path, tuple[Path, str, Path]] = {}  # by the real folder and the file's own name
    bases, left_out = [], []
    for given in (each for path in paths for each in _matches(path)):
        is_folder = os.path.isdir(given)
        base = given.resolve() if is_folder else given.parent.resolve()
        bases.append(str(base))
        inside = find_pictures(given, recursive, seen) if is_folder else None
        left_out += [_without(given, inside.left_out, own)] if inside else []
        for path, problem in _entries(given, inside) if inside else [(given, "")]:
            below = path.relative_to(given) if is_folder else Path(given.name)
            found.setdefault(path.parent.resolve() / path.name, (path, problem, base / below))
    if not found:
        remedy = "" if recursive else " Use --recursive to look into sub-folders."
        raise DataError(f"no pictures in {', '.join(repr(str(path)) for path in paths)}.{remedy}")
    common = Path(os.path.commonpath(bases))
    sources = (InputFile(path, at.relative_to(common).as_posix(), problem) for path, problem, at in found.values())
    return Inputs(tuple(sources), joined_reasons(left_out))


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


def _entries(folder: Path, found: FoundPictures) -> Iterator[tuple[Path, str]]:
    """Yield the pictures of a folder, and sub-folders that cannot be listed with the reason."""
    yield from ((folder / name, "") for name in found.pictures)
    for name, reason in found.problems.items():
        yield folder / name, f"folder '{folder / name}' cannot be read: {reason}."


def _without(
    folder: Path, left_out: Mapping[str, tuple[str, ...]], own: Container[object]
) -> dict[str, tuple[str, ...]]:
    """Return what was left out of a folder, but for the scan's own pictures."""
    again = tuple(name for name in left_out.get(SEEN, ()) if identity(folder / name) not in own)
    return {why: again if why == SEEN else names for why, names in left_out.items() if why != SEEN or again}
