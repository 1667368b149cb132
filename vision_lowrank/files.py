"""Writing files and folders so that a crash leaves the old one or the new one, never half of it; and which name was
probably meant where a file is missing.

A folder is replaced by two renames, old → away and new → in. A process that is killed between them leaves no folder of
that name, and both complete beside it: whoever reads or writes the folder next puts the old one back
(:func:`recover`). Temporary folders carry the name of the machine and the number of the process that made them, so
that the next call clears those of dead ones. They never lie inside an artefact, which people copy.
"""

from __future__ import annotations

import errno
import glob
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from .errors import UserError, near_miss

MARKS = ("artefact.json", "vision_lowrank.json")  # of folders that are one thing


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as :func:`write_bytes` does.

    Bytes of file names that are no UTF-8, or that a locale without it could not read, are written as their escapes.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary name, force it to disk, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _workplace(path) / f".{path.name}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write that fails does not know where
        raise


def check_output(path: Path | None) -> Path | None:
    """Return where results will be written, after trying that it can be: before the work, not after it.

    Raises:
        UserError: nothing can be written there.
    """
    if path is None:
        return None
    home = path if path.is_dir() else path.parent
    while not home.exists() and home.parent != home:
        home = home.parent
    try:
        if not home.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=home):
            pass
        if path.is_file():
            os.close(os.open(path, os.O_WRONLY))
    except OSError as error:
        raise UserError(f"'{path}' cannot be written ({error.strerror}): give another place.") from None
    return path


@contextmanager
def replaced(folder: Path, mark: str) -> Iterator[Path]:
    """Yield a new folder that replaces `folder` once all of it is on the disk; an error changes nothing.

    Args:
        folder: created, or replaced where it holds the file `mark`; its other files are kept.
        mark: name of a file that every folder of this kind holds.

    Raises:
        UserError: `folder` is a file, or holds other things.
    """
    recover(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file: give a folder.")
    if folder.exists() and any(folder.iterdir()) and not (folder / mark).exists():
        raise UserError(f"'{folder}' holds other things (no {mark}): give a new or an empty folder.")
    with temporary_folder(folder) as work:
        new = work / "new"
        if folder.exists():
            shutil.copytree(folder, new)
        else:
            new.mkdir()
        yield new
        swap(new, folder, work)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder near `target`, on its disk and in no artefact, that is gone after the block."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear(target)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.{_process()}.", dir=_workplace(target)))
    try:
        yield work
    finally:
        recover(target)
        shutil.rmtree(work, ignore_errors=True)


def swap(new: Path, folder: Path, work: Path) -> None:
    """Force `new` to the disk and give it the name of `folder`, which goes away; `work` is a temporary folder."""
    for path in (*new.rglob("*"), new):
        if not path.is_symlink():
            flush(path)
    if folder.exists():
        os.replace(folder, work / "old")
    os.replace(new, folder)
    flush(folder.parent)


def recover(folder: Path) -> None:
    """Put `folder` back where a process was killed while it had no name; nothing where it exists."""
    home = folder.resolve()
    if home.exists():
        return
    for work in _temporary(home):
        if (work / "old").exists() and (_is_ours(work) or not _is_alive(work)):
            os.replace(work / "old", home)
            shutil.rmtree(work, ignore_errors=True)
            return


def _clear(target: Path) -> None:
    """Remove what dead processes left beside `target`."""
    recover(target)
    for work in _temporary(target.resolve()):
        if not _is_alive(work) and not _is_ours(work):
            shutil.rmtree(work, ignore_errors=True)


def _temporary(target: Path) -> list[Path]:
    """List the temporary folders that this machine made for `target`; others may be at work elsewhere."""
    pattern = f".{glob.escape(target.name)}.{glob.escape(_machine())}-*.*"
    return sorted(path for path in _workplace(target).glob(pattern) if path.is_dir())


def _workplace(target: Path) -> Path:
    """Return the nearest folder above `target` that belongs to no artefact."""
    home = target.parent
    while home.parent != home and any((home / mark).exists() for mark in MARKS):
        home = home.resolve().parent
    return home


def _machine() -> str:
    return platform.node().replace(".", "_").replace("-", "_") or "here"


def _process() -> str:
    return f"{_machine()}-{os.getpid()}"


def _number(work: Path) -> int:
    """Return the number of the process that made a temporary folder; 0 where it has none."""
    digits = work.name.rpartition(".")[0].rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


def _is_ours(work: Path) -> bool:
    return _number(work) == os.getpid()


def _is_alive(work: Path) -> bool:
    number = _number(work)
    if not number or os.name == "nt":  # Windows' kill ends what it asks
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def flush(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sibling(path: Path) -> str:
    """Return a sentence with the name in the folder of `path` that was probably meant, or an empty string."""
    try:
        with os.scandir(path.parent) as entries:
            return near_miss(path.name, [entry.name for entry in islice(entries, 1000)])
    except OSError:
        return ""
