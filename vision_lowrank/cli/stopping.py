"""How commands end that cannot go on: interrupted, out of memory, or refused a file. One line says what to do."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # on the disk
# What the system, torch and its allocators say where memory is short.
NO_MEMORY = ("not enough memory", "allocate memory", "out of memory", "bad_alloc", "failed to map segment")


class Commands(TyperGroup):
    """Commands of which every one that is interrupted says how to go on."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise interrupted(shlex.join(["vision-lowrank", *sys.argv[1:]])) from None


def interrupted(command: str) -> typer.Exit:
    """Say that `command` goes on with what was interrupted; returns what to leave with."""
    print(f"interrupted. Go on with: {command}", file=sys.stderr)
    return typer.Exit(130)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM interrupt as SIGINT does, in this process and in no child of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def memory_shortage(error: Exception) -> str | None:
    """Return one line for people where `error` says that memory is short, on the machine or on a GPU; else None."""
    said = next((line.strip() for line in str(error).splitlines() if any(each in line for each in NO_MEMORY)), "")
    if not (isinstance(error, MemoryError) or (said and isinstance(error, RuntimeError | OSError | ImportError))):
        return None
    detail = f" ({said[:200]})" if said else ""
    return (
        f"not enough memory{detail}: end other programs, or do with smaller parts: engine.accumulate of a training, "
        "engine.eval_batch_size, --batch-size of a command, smaller pictures."
    )


def system_refusal(error: Exception) -> str | None:
    """Return one line for people where the system has something against a file; None for any other error."""
    full = "make room and give the same command again; what was saved before is whole"
    if isinstance(error, OSError) and error.strerror:
        name = next((f"'{each}'" for each in (error.filename2, error.filename) if each), "the output")
        remedy = full if error.errno in NO_ROOM else "check the place and its permissions"
        return f"{name}: {error.strerror}: {remedy}."
    if type(error).__name__ == "SafetensorError" and "No space left" in str(error):
        return f"a file of tensors cannot be written: No space left on device: {full}."
    return None
