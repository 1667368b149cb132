"""Jobs in several processes of this machine, which run :mod:`.worker`."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import torch

from ..engine.signals import SignalWatch
from .job import LOG, Job, to_json
from .launch import Launcher, Say, Stopped, Teller, here

POLL = 0.2  # seconds between two looks at what happened
WORKER = f"{__package__}.worker"


def local(jobs: int) -> Launcher:
    """Return a launcher that runs jobs in this process, or in as many as there are jobs at a time."""
    return Processes(jobs) if jobs > 1 else here


class Processes:
    """Runs jobs in several processes of this machine, each with its share of the threads and a GPU if there are some.

    A process takes job after job, in a Python of its own: methods of other packages are known there by their entry
    points. What a job prints goes into ``log.txt`` in its folder. A process that dies costs its job only. SIGINT and
    SIGTERM are passed on once: every training writes a checkpoint, and :class:`Stopped` is raised; a second one ends
    the processes at once.

    Args:
        number: of processes.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, jobs: Sequence[Job], say: Say) -> list[str | None]:
        """Run the jobs as :class:`Launcher` says."""
        tell, left = Teller(len(jobs), say), list(enumerate(jobs))
        reasons: dict[int, str | None] = {}
        workers = [_Worker(*each) for each in self._shares(min(self.number, len(jobs)))]
        try:
            with SignalWatch() as signals:
                while (left and not signals.pending) or any(worker.job for worker in workers):
                    for worker in workers if not signals.pending else []:
                        if left and worker.job is None:
                            number, job = left.pop(0)
                            worker.give(number, job)
                            tell.begins(job)
                    for worker in workers if signals.pending else []:
                        worker.stop()
                    for worker in _answered(workers):
                        number, job, reason, stopped = worker.take()
                        if not stopped:
                            reasons[number] = reason
                            tell.ends(job, reason)
        finally:
            for worker in workers:
                worker.close()
        if len(reasons) < len(jobs):
            raise Stopped(len(jobs) - len(reasons), len(jobs))
        return [reasons[number] for number in range(len(jobs))]

    def _shares(self, number: int) -> Iterator[tuple[int, str | None]]:
        """Yield threads and visible GPU of every process; None where there are no several GPUs to share."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        devices = [device for device in visible.split(",") if device]
        for index in range(number):
            device = devices[index % len(devices)] if len(devices) > 1 else None
            yield max(1, torch.get_num_threads() // number), device


class _Worker:
    """A process of :mod:`.worker` and what it is doing."""

    def __init__(self, threads: int, device: str | None) -> None:
        self.job: Job | None = None
        self._number, self._stopping = -1, False
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
        if device is not None:
            self._environment["CUDA_VISIBLE_DEVICES"] = device
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=self._environment,
            start_new_session=True,  # an interrupt from the keyboard reaches the parent alone, which passes it on once
        )

    @property
    def answers(self) -> IO[str]:
        """Where it says that a job is over; at its end when it died."""
        assert self._process.stdout is not None
        return self._process.stdout

    def give(self, number: int, job: Job) -> None:
        """Let it do a job."""
        if self._process.poll() is not None:
            self._start()
        self._number, self.job = number, job
        assert self._process.stdin is not None
        self._process.stdin.write(to_json(job) + "\n")
        self._process.stdin.flush()

    def take(self) -> tuple[int, Job, str | None, bool]:
        """Return number and job of what is over, why it could not be done, and whether it was asked to stop."""
        number, job = self._number, self.job
        assert job is not None
        self.job = None
        if answer := self.answers.readline():
            return number, job, *json.loads(answer)
        code = self._process.wait()
        return number, job, f"its process ended with code {code}; see {Path(job.folder) / LOG}", self._stopping

    def stop(self) -> None:
        """Pass the signal on, once."""
        if self.job and not self._stopping:
            self._stopping = True
            self._process.terminate()

    def close(self) -> None:
        """End the process."""
        if self.job:
            self._process.kill()
        self._process.communicate()


def _answered(workers: Sequence[_Worker]) -> list[_Worker]:
    """Return those whose job is over, after a moment's wait."""
    busy = {worker.answers: worker for worker in workers if worker.job}
    return [busy[each] for each in select.select(list(busy), [], [], POLL)[0]] if busy else []
