"""What a run leaves to read: ``metrics.jsonl``, one JSON object per line, and TensorBoard event files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError


class MetricsLog:
    """Appends lines such as ``{"stage": "fit", "step": 10, "global_step": 10, "lr": 2e-4, "loss": 1.3}``.

    Args:
        folder: the run's folder; ``metrics.jsonl`` and ``tensorboard/`` are made on the first write.
        enabled: False in every process but the main one: nothing is written.
        fresh: whether lines already there are leftovers and are replaced by the first write.
        tensorboard: write event files as well.
    """

    def __init__(self, folder: Path, *, enabled: bool, fresh: bool, tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl"
        self._enabled, self._fresh = enabled, fresh
        self._tensorboard = tensorboard
        self._writer: Any = None
        self._purge_step: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the lines that belong to this run."""
        return self.path.stat().st_size if self.path.exists() and not self._fresh else 0

    def rewind(self, size: int, global_step: int) -> None:
        """Drop everything written after the log had `size` bytes, at step `global_step`: one atomic truncation."""
        if self._enabled and self.size > size:
            os.truncate(self.path, size)
        self._purge_step = global_step + 1

    def write(
        self, stage: str | None, step: int, global_step: int, values: Mapping[str, float], *, split: str | None = None
    ) -> None:
        """Write one line of training values, or of `split`'s metrics; numbers that are not finite become null.

        Raises:
            UserError: the file could not be written.
        """
        if not self._enabled:
            return
        head = {"stage": stage, "step": step, "global_step": global_step} | ({"split": split} if split else {})
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("w" if self._fresh else "a", encoding="utf-8") as file:
                file.write(json.dumps({**head, **finite}) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.path} could not be written ({error.strerror}): make room and resume the run."
            ) from error
        self._fresh = False
        if self._tensorboard:
            self._write_events(f"{stage or 'base'}/{split or 'train'}", global_step, values)

    def close(self) -> None:
        """Flush and close the event file; the next write opens a new one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write_events(self, prefix: str, global_step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            folder = str(self.path.parent / "tensorboard")
            self._writer = SummaryWriter(folder, purge_step=self._purge_step)
        for name, value in values.items():
            self._writer.add_scalar(f"{prefix}/{name}", value, global_step)
