"""Where jobs run: here one after another; in several processes of this machine (:mod:`.processes`); or on a cluster
(:mod:`.cluster`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from .job import Job, attempt

Say = Callable[[str], None]


class Launcher(Protocol):
    """Runs jobs."""

    def __call__(self, jobs: Sequence[Job], say: Say) -> list[str | None]:
        """Run them all, in whatever order.

        Args:
            jobs: none of them done.
            say: told what is being done, one line at a time.

        Returns:
            For every job the reason why it could not be done, None where it was.

        Raises:
            Stopped, Interrupted: asked to stop; what was being trained has written checkpoints.
        """
        ...


class Stopped(Exception):
    """The launcher was asked to stop."""

    exit_code = 130

    def __init__(self, left: int, total: int) -> None:
        super().__init__(f"interrupted with {left} of {total} jobs left; those that were training wrote checkpoints.")


def here(jobs: Sequence[Job], say: Say) -> list[str | None]:
    """Run jobs in this process, one after another; as :class:`Launcher`."""
    tell, reasons = Teller(len(jobs), say), []
    for job in jobs:
        tell.begins(job)
        reasons.append(attempt(job))
        tell.ends(job, reasons[-1])
    return reasons


class Teller:
    """Lines of progress."""

    def __init__(self, total: int, say: Say) -> None:
        self._total, self._say = total, say
        self._begun, self._started = 0, time.perf_counter()

    def begins(self, job: Job) -> None:
        """Tell that a job begins."""
        self._begun += 1
        minutes = (time.perf_counter() - self._started) / 60
        self._say(f"job {self._begun} of {self._total}: {job.name} ({minutes:.0f} min so far)")

    def ends(self, job: Job, reason: str | None) -> None:
        """Tell where a job that is over could not be done."""
        if reason:
            self._say(f"{job.name} left out: {reason}")
