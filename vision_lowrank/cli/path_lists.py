"""Many paths on a command line, as a shell's globs make them, kept in a file that stands for them.

So the command that goes on with an interrupted scan is one line that can be pasted. A list has a path a line.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError

MANY = 8
NAME = "inputs.txt"
# Options of ``scan`` that are followed by a value, which may look like one of the paths.
_WITH_VALUE = ("--model", "--out", "--batch", "--device", "--threshold", "--fail-on")


def read_list(path: Path) -> list[Path]:
    """Read the paths that a list names, without empty lines.

    Raises:
        UserError: it cannot be read, or names nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UserError(
            f"--list '{path}': cannot be read ({error.strerror}): give a file with a path a line."
        ) from None
    found = [Path(line) for line in lines if line.strip()]
    if not found:
        raise UserError(f"--list '{path}': it is empty: give a file with a path a line.")
    return found


def shorten(command: str, paths: Sequence[Path], folder: Path) -> str:
    """Return `command` with a list, written into `folder`, in place of its paths, where these are many.

    Args:
        command: as it was typed, quoted for a shell.
        paths: that it names.
        folder: takes the list; it exists.

    Raises:
        UserError: the list cannot be written.
    """
    if len(paths) <= MANY or any(len(str(path).splitlines()) > 1 for path in paths):
        return command
    words, known = shlex.split(command), set(paths)
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word != "--" and (before in _WITH_VALUE or word.startswith("-") or Path(word) not in known)
    ]
    try:
        text = "".join(f"{path}\n" for path in paths)
        (folder / NAME).write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"'{folder / NAME}' cannot be written: {error.strerror}.") from None
    return shlex.join([*kept, "--list", str(folder / NAME)])
