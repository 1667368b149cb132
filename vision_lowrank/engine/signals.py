"""Stopping in good order: SIGINT and SIGTERM let the current step finish, and a checkpoint is written."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop and its state is safe on disk.

    Attributes:
        folder: the engine's folder.
        exit_code: what a command line should exit with.
    """

    exit_code = 130

    def __init__(self, folder: Path, stage: str, step: int) -> None:
        self.folder, self.stage, self.step = folder, stage, step
        super().__init__(f"interrupted after step {step} of stage '{stage}'; a checkpoint is in {folder}.")


class SignalWatch:
    """Context in which the first SIGINT or SIGTERM only sets ``pending``; a second one stops at once.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.pending = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True
