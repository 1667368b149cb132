"""A folder of which some files change together: a killed process leaves the old ones or the new ones, never a mix.

The new folder is made beside the old one and on the disk before the names change; files that stay are hard links, so
their bytes are not written again. Between the two renames, old → away and new → in, the folder has no name for some
microseconds: a process killed just there leaves both complete, and :func:`recover` puts the old one back.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...files import flush


@contextmanager
def renewed(folder: Path, without: Collection[str]) -> Iterator[Path]:
    """Yield a copy of `folder`, to write into, that takes its place when the block ends; an error changes nothing.

    Args:
        folder: what is replaced.
        without: files that the copy lacks, because they are written anew. No other file of it may be written to: it
            is the old folder's own.

    Raises:
        OSError: something cannot be written.
    """
    home = folder.resolve()
    work = Path(tempfile.mkdtemp(prefix=f".{home.name}.renewal.", dir=home.parent))
    new, old = work / "new", work / "old"
    try:
        left_out = {str(home): list(without)}
        shutil.copytree(
            home, new, symlinks=True, copy_function=_link, ignore=lambda where, _: left_out.get(str(where), [])
        )
        yield new
        for name in without:
            if (home / name).exists() and (new / name).exists():
                shutil.copymode(home / name, new / name)
        for path in (*new.rglob("*"), new):
            flush(path)
        os.replace(home, old)
        os.replace(new, home)
        flush(home.parent)
    finally:
        recover(folder)
        shutil.rmtree(work, ignore_errors=True)


def recover(folder: Path) -> None:
    """Put `folder` back if a process was killed while it had no name."""
    home = folder.resolve()
    if not home.exists():
        for old in home.parent.glob(f".{glob.escape(home.name)}.renewal.*/old"):
            os.replace(old, home)
            shutil.rmtree(old.parent, ignore_errors=True)
            return


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another user's file, or a disk without hard links
        shutil.copy2(source, target)
