"""One process at a time in a folder: a lock that the system takes back when its process ends, however it ends.

The lock is on the file ``.lock``, which holds the id of its process. Children that a process forks, such as those that
load data, do not hold it on.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

NAME = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_held: set[int] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of `folder`, which is made; a file system that knows no locks keeps nobody out.

    Raises:
        UserError: another process has it; the message names its id.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    file = _acquire(path)
    _held.add(file)
    try:
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        if file in _held:  # not so in a forked child
            _held.discard(file)
            _release(path, file)


def _acquire(path: Path) -> int:
    """Open the file and lock it, again where whoever had it removed it in between."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file)
        except OSError as error:
            if error.errno not in TAKEN:
                return file  # a file system without locks
            owner = os.read(file, 200).decode(errors="replace")
            os.close(file)
            raise UserError(
                f"{path.parent}: process {owner or 'of another command'} works in this folder: wait until it is done, "
                "or stop it."
            ) from None
        if _is_at(path, file):
            return file
        os.close(file)


def _is_at(path: Path, file: int) -> bool:
    """Tell whether the open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _release(path: Path, file: int) -> None:
    """Remove the file while it is still ours, lest somebody else's goes with it; Windows removes no open file."""
    if os.name == "nt":
        os.close(file)
        path.unlink(missing_ok=True)
    else:
        path.unlink(missing_ok=True)
        os.close(file)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        os.lseek(file, 2**30, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _let_go() -> None:
        """Close a forked child's copies, with which it would hold the lock when its parent is gone."""
        for file in _held:
            os.close(file)
        _held.clear()

    os.register_at_fork(after_in_child=_let_go)
