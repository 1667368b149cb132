"""What is printed by commands that work for long: its reader may leave, and the work goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


@contextmanager
def lasting_output() -> Iterator[None]:
    """Lose inside what is printed to a standard output or error that nobody reads any more, instead of ending."""
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Lasting(stream) if stream else stream for stream in kept)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = kept


class _Lasting:
    """A stream that goes nowhere once its reader has left: a pipe that was closed, a terminal that was hung up."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if anybody reads."""
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """Flush, if anybody reads."""
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Send the rest nowhere, what the stream still holds included."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def open_standard_streams() -> None:
    """Open those of the descriptors 0, 1 and 2 that are closed, lest a file of ours gets one and is printed into."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one


def flush_output() -> None:
    """Write out what was printed: a full disk is said here, not by the interpreter on its way out."""
    with suppress(BrokenPipeError, ValueError):  # who reads has left, or stdout is closed: nothing is missing
        sys.stdout.flush()


def drop_output() -> None:
    """Drop what stdout could not write, so that the interpreter does not try again at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def plain(text: str) -> str:
    """Show bytes that are no text, or that steer a terminal, as their escapes: file names may hold such."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
