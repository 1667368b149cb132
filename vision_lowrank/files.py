"""Writing files and folders so that a crash leaves the old one or the new one, never half of it; and which name was
probably meant where a file is missing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from .errors import UserError, near_miss


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a temporary name, force it to disk, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replaced(folder: Path, mark: str) -> Iterator[Path]:
    """Yield a new folder that replaces `folder` once all of it is on the disk; an error changes nothing.

    Args:
        folder: created, or replaced where it holds the file `mark`; its other files are kept.
        mark: name of a file that every folder of this kind holds.

    Raises:
        UserError: `folder` is a file, or holds other things.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file: give a folder.")
    if folder.exists() and any(folder.iterdir()) and not (folder / mark).exists():
        raise UserError(f"'{folder}' holds other things (no {mark}): give a new or an empty folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        if folder.exists():
            shutil.copytree(folder, new, dirs_exist_ok=True)
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                flush(path)
        new.chmod(0o777 & ~umask())
        flush(new)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            os.replace(folder, old / "previous")
            try:
                os.replace(new, folder)
            except BaseException:  # an interrupt too
                os.replace(old / "previous", folder)
                old.rmdir()
                raise
            shutil.rmtree(old)
        else:
            os.replace(new, folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def flush(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def umask() -> int:
    """Return the permissions that new files of this process do not get; there is no way to ask but to set them."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sibling(path: Path) -> str:
    """Return a sentence with the name in the folder of `path` that was probably meant, or an empty string."""
    try:
        with os.scandir(path.parent) as entries:
            return near_miss(path.name, [entry.name for entry in islice(entries, 1000)])
    except OSError:
        return ""
