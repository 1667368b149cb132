"""Text files of numbers, one row per frame, as boxes, results and labels are written everywhere in the field.

Numbers stand between commas, semicolons, tabs or blanks; a row's mistake is told with the file and the row, counted
from 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import DataError
from ...files import sibling

_BETWEEN = str.maketrans({",": " ", ";": " ", "\t": " "})
REMEDY = "mend the file or get it again"


def read_lines(path: Path) -> list[str]:
    """Read a text file's lines, without empty ones at its end.

    Raises:
        DataError: it is missing or no text.
    """
    if not path.is_file():
        raise DataError(f"'{path}' does not exist.{sibling(path)} Check the path, or get the file again.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"'{path}' is no text: {REMEDY}.") from None
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def read_numbers(path: Path, columns: int, remedy: str = REMEDY) -> np.ndarray:
    """Read rows of numbers, (N, columns) float64; NaN where the file says so; more columns are left out.

    Args:
        path: the text file.
        columns: how many numbers every row must have at least.
        remedy: what to do about a mistake.

    Raises:
        DataError: it is missing, no text, or a row is short or has a word (names the row).
    """
    return parse_numbers(read_lines(path), columns, f"'{path}'", remedy)


def parse_numbers(lines: list[str], columns: int, name: str, remedy: str = REMEDY) -> np.ndarray:
    """Parse lines as :func:`read_numbers`; `name` is what to call them in messages."""
    rows = [line.translate(_BETWEEN).split()[:columns] for line in lines]
    for number, row in enumerate(rows, 1):
        if len(row) < columns:
            raise DataError(f"{name}, row {number}: {len(row)} numbers, not {columns}: {remedy}.")
    try:
        return np.array(rows, dtype=np.float64).reshape(-1, columns)
    except ValueError:
        number, word = next(
            (number, word) for number, row in enumerate(rows, 1) for word in row if not _is_number(word)
        )
        raise DataError(f"{name}, row {number}: '{word[:40]}' is no number: {remedy}.") from None


def read_flags(path: Path, frames: int) -> np.ndarray:
    """Read one number per frame, in one line or in many, as (frames,) float64.

    Raises:
        DataError: as :func:`read_numbers`, or there are not as many as frames.
    """
    words = [word for line in read_lines(path) for word in line.translate(_BETWEEN).split()]
    flags = parse_numbers(words, 1, f"'{path}'")[:, 0]
    if len(flags) != frames:
        raise DataError(f"'{path}' has {len(flags):,} labels for {frames:,} frames: {REMEDY}.")
    return flags


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
