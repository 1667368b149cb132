"""Reading pickle files of other people's making: plain containers, and the few names that a caller vouches for.

A pickle may run any code when it is loaded. The reader here never imports what a file names: each name is looked up
among stand-ins of ours, and a file with any other name is refused before anything of it is called.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError

# known(module, name) -> our stand-in for that name; None where the file has no business with it.
Known = Callable[[str, str], Any]


class _Refused(Exception):
    """The file refers to a name that nobody vouches for; its text is that name."""


class _SafeUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, known: Known, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        """Look up the stand-in for a name.

        Raises:
            _Refused: there is none.
        """
        found = self._known(module, name)
        if found is None:
            raise _Refused(f"{module}.{name}")
        return found


def read_pickle(path: Path, what: str, known: Known, remedy: str, encoding: str = "ASCII") -> Any:
    """Read what a pickle file holds, built from plain containers and stand-ins alone.

    Args:
        path: the file.
        what: what the file is, as messages call it, such as ``few-shot selection``.
        known: ``known(module, name)`` gives the stand-in for a name, None for names to refuse.
        remedy: what to do about a damaged file.
        encoding: how strings of Python 2 are decoded; ``bytes`` leaves them as bytes.

    Raises:
        DataError: the file refers to another name, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            return _SafeUnpickler(file, known, encoding).load()
    except _Refused as error:
        raise DataError(
            f"{what} '{path}' was refused: it refers to '{error}', which no {what} needs. Do not trust this file."
        ) from None
    except Exception as error:  # damaged pickles raise whatever their opcodes stumble on
        raise DataError(f"{what} '{path}' is damaged ({type(error).__name__}): {remedy}.") from None
