"""A folder of which some files change together: a killed process leaves the old ones or the new ones, never a mix.

The new folder is made beside the old one and swapped with it (:mod:`vision_lowrank.files`); files that stay are hard
links, so their bytes are not written again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...files import swap, temporary_folder


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
    with temporary_folder(home) as work:
        new = work / "new"
        left_out = {str(home): list(without)}
        shutil.copytree(
            home, new, symlinks=True, copy_function=_link, ignore=lambda where, _: left_out.get(str(where), [])
        )
        yield new
        for name in without:
            if (home / name).exists() and (new / name).exists():
                shutil.copymode(home / name, new / name)
        swap(new, home, work)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another user's file, or a disk without hard links
        shutil.copy2(source, target)
