"""Jobs on a cluster, through submitit: Slurm where there is one, else processes of this machine.

Needs the extra ``cluster``. The command waits for its jobs, and cancels those that are left when it is interrupted;
after it was killed in another way, cancel them (``scancel``) before it is called again. A job that the cluster preempts
or that runs out of time is submitted again and goes on from its checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engine.signals import SignalWatch
from ..errors import UserError
from .job import Job, attempt, from_json, to_json
from .launch import Say, Stopped

POLL = 2.0  # seconds between two looks at what happened
# What submitit is told unless the user says otherwise: its own limit is five minutes.
DEFAULTS = {"timeout_min": 24 * 60, "name": "vision-lowrank"}


class Submitit:
    """Runs every job as one of a cluster's; a :class:`~vision_lowrank.studies.launch.Launcher`.

    Args:
        folder: takes what submitit writes: scripts and logs.
        settings: parameters of ``submitit.AutoExecutor``, such as ``timeout_min`` and ``slurm_partition``; ``cluster``
            is ``slurm`` or ``local``, found out if not given.

    Raises:
        UserError: submitit is not installed, or does not know a setting.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError(
                "--launcher submitit needs submitit: install vision-lowrank with the extra 'cluster'."
            ) from None
        options = {**DEFAULTS, **settings}
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=options.pop("cluster", None))
            self._executor.update_parameters(**options)
        except (AssertionError, NameError, RuntimeError, ValueError) as error:  # how submitit refuses a setting
            raise UserError(f"--cluster: {str(error).splitlines()[0]}") from None

    def __call__(self, jobs: Sequence[Job], say: Say) -> list[str | None]:
        """Submit all of them, and wait."""
        if not jobs:
            return []
        submitted = self._executor.map_array(_Remote(), [to_json(job) for job in jobs])  # type: ignore[arg-type]
        say(f"{len(jobs)} jobs submitted: {submitted[0].job_id} to {submitted[-1].job_id}")
        left, started = dict(enumerate(submitted)), time.perf_counter()
        reasons: dict[int, str | None] = {}
        with SignalWatch() as signals:
            while left and not signals.pending:
                for number in [number for number, each in left.items() if each.done()]:
                    reasons[number] = _reason(left.pop(number))
                    minutes = (time.perf_counter() - started) / 60
                    told = f"left out: {reasons[number]}" if reasons[number] else f"done ({minutes:.0f} min so far)"
                    say(f"{len(reasons)} of {len(jobs)}: {jobs[number].name} {told}")
                if left:
                    time.sleep(POLL)
        for each in left.values():
            each.cancel(check=False)
        if left:
            raise Stopped(len(left), len(jobs))
        return [reasons[number] for number in range(len(jobs))]


class _Remote:
    """What submitit calls on the other machine."""

    def __call__(self, text: str) -> str | None:
        return attempt(from_json(text))

    def checkpoint(self, text: str) -> Any:
        """Submit the same again: submitit asks for it when a job is preempted or runs out of time."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, text)


def _reason(job: Any) -> str | None:
    """Return why a job could not be done; None where it was."""
    error = job.exception()
    return job.result() if error is None else f"{type(error).__name__}: {error}".splitlines()[0]
