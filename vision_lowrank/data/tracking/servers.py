"""Submissions to the evaluation servers of GOT-10k and TrackingNet: checked, and packed into one ZIP file.

=============  ======================================================================================================
got10k         SEQ/SEQ_001.txt (…_002 and _003 where runs are repeated) and SEQ/SEQ_time.txt, with a column per run;
               in the archive's root, as the toolkit packs, or below one folder, as LoRAT does
trackingnet    one SEQ.txt per sequence, in any folder
=============  ======================================================================================================

Every row of every frame is there, the first included, in finite numbers. A check looks at a folder or an archive and
finds all mistakes, one line each.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from ...errors import DataError
from ...files import write_bytes
from .text import parse_numbers

Files = dict[str, Callable[[], bytes]]
_SAME_DATE = (1980, 1, 1, 0, 0, 0)  # equal results are equal archives


def check_got10k(place: Path, lengths: Mapping[str, int]) -> list[str]:
    """Check results for GOT-10k's server.

    Args:
        place: a folder or a ZIP file.
        lengths: name of every sequence of the test set -> its frames.

    Returns:
        One line for each mistake; none = it can be sent.
    """
    return [line for line, _ in _look_got10k(_files(place), lengths) if line]


def check_trackingnet(place: Path, lengths: Mapping[str, int]) -> list[str]:
    """Check results for TrackingNet's server; as :func:`check_got10k`."""
    return [line for line, _ in _look_trackingnet(_files(place), lengths) if line]


def pack_got10k(folder: Path, target: Path, lengths: Mapping[str, int]) -> Path:
    """Pack a folder of results for GOT-10k's server, sequence folders in the archive's root; return `target`.

    Raises:
        DataError: something is wrong; the first of :func:`check_got10k`'s lines and their number.
    """
    return _pack(_look_got10k(_files(folder), lengths), folder, target)


def pack_trackingnet(folder: Path, target: Path, lengths: Mapping[str, int]) -> Path:
    """Pack a folder of results for TrackingNet's server, all files in the archive's root; as :func:`pack_got10k`."""
    return _pack(_look_trackingnet(_files(folder), lengths), folder, target)


Look = Iterator[tuple[str, tuple[str, bytes] | None]]  # a mistake, or name and content of a file to pack


def _look_got10k(files: Files, lengths: Mapping[str, int]) -> Look:
    inside = _without_folder(files)
    own = {name: re.fullmatch(r"([^/]+)/\1_(\d{3}|time)\.txt", name) for name in inside}
    runs: dict[str, list[int]] = {}
    for name, match in own.items():
        if match is None or match[1] not in lengths:
            yield f"'{name}' is no result of a sequence: take it out.", None
        elif match[2] != "time":
            runs.setdefault(match[1], []).append(int(match[2]))
    most = max((len(each) for each in runs.values()), default=1)
    for sequence, frames in lengths.items():
        numbers = sorted(runs.get(sequence, []))
        if numbers != list(range(1, most + 1)):
            lacking = sorted(set(range(1, most + 1)) - set(numbers)) or [most + 1]
            yield f"'{sequence}' has no '{sequence}_{lacking[0]:03d}.txt': run the tracker on it.", None
        for number in numbers:
            yield from _rows(inside, f"{sequence}/{sequence}_{number:03d}.txt", frames, 4)
        yield from _rows(inside, f"{sequence}/{sequence}_time.txt", frames, max(len(numbers), 1))


def _look_trackingnet(files: Files, lengths: Mapping[str, int]) -> Look:
    by_name: dict[str, list[str]] = {}
    for name in files:
        by_name.setdefault(PurePosixPath(name).stem, []).append(name)
    for stem, names in by_name.items():
        times = all(PurePosixPath(name).parent.name == "times" for name in names)  # ours; not sent
        if stem not in lengths and not times:
            yield f"'{names[0]}' is no result of a sequence: take it out.", None
    for sequence, frames in lengths.items():
        names = by_name.get(sequence, [])
        if len(names) > 1:
            yield f"'{sequence}' is there twice, '{names[0]}' and '{names[1]}': keep one.", None
        elif not names:
            yield f"'{sequence}' has no '{sequence}.txt': run the tracker on it.", None
        else:
            for line, file in _rows(files, names[0], frames, 4):
                yield line, file and (f"{sequence}.txt", file[1])


def _rows(files: Files, name: str, frames: int, columns: int) -> Look:
    """Check one file of numbers, and give it to be packed."""
    if name not in files:
        yield f"'{name}' is missing: run the tracker on this sequence.", None
        return
    content = files[name]()
    lines = content.decode(errors="replace").split("\n")
    try:
        rows = parse_numbers(lines[:-1] if not lines[-1].strip() else lines, columns, f"'{name}'")
    except DataError as error:
        yield str(error), None
        return
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1) | (rows[:, 2:4] < 0).any(axis=1))
    if len(rows) != frames:
        yield f"'{name}' has {len(rows):,} rows for {frames:,} frames: run the tracker on this sequence again.", None
    elif len(bad):
        yield (
            f"'{name}', row {bad[0] + 1}: not finite, or a negative side: run the tracker on this sequence again.",
            None,
        )
    else:
        yield "", (name, content)


def _files(place: Path) -> Files:
    """List the text files of a folder or an archive, by POSIX path; hidden and systems' ones are passed over.

    Raises:
        DataError: there is neither.
    """
    if place.is_dir():
        found: Files = {each.relative_to(place).as_posix(): each.read_bytes for each in sorted(place.rglob("*.txt"))}
    elif zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as archive:
            names = [name for name in archive.namelist() if name.endswith(".txt")]
        found = {name: lambda name=name: _member(place, name) for name in names}
    else:
        raise DataError(f"'{place}' is neither a folder nor a ZIP file: give the results of a tracker.")
    return {name: read for name, read in found.items() if not re.search(r"(^|/)(\.|__MACOSX/)", name)}


def _member(place: Path, name: str) -> bytes:
    with zipfile.ZipFile(place) as archive:
        return archive.read(name)


def _without_folder(files: Files) -> Files:
    """Take away the one folder that holds everything, where there is one."""
    parts = [PurePosixPath(name).parts for name in files]
    if parts and all(len(each) == 3 for each in parts) and len({each[0] for each in parts}) == 1:
        return {name.partition("/")[2]: read for name, read in files.items()}
    return files


def _pack(look: Look, folder: Path, target: Path) -> Path:
    packed = io.BytesIO()
    mistakes = []
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for line, file in look:
            if line:
                mistakes.append(line)
            elif file and not mistakes:
                archive.writestr(zipfile.ZipInfo(file[0], _SAME_DATE), file[1], zipfile.ZIP_DEFLATED)
    if mistakes:
        more = f" ({len(mistakes) - 1:,} more mistakes)" if len(mistakes) > 1 else ""
        raise DataError(f"'{folder}' cannot be sent: {mistakes[0]}{more}")
    write_bytes(target, packed.getvalue())
    return target
