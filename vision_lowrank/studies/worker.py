"""``python -m vision_lowrank.studies.worker``: does jobs that :class:`~vision_lowrank.studies.launch.Processes` gives.

A job comes as a line of JSON on standard input; ``[reason, stopped]`` goes back as one on standard output. What the job
prints goes into its log.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..engine import Interrupted
from .job import LOG, attempt, from_json


def main() -> None:
    """Do one job after another, until the parent hangs up."""
    answers, threads = os.fdopen(os.dup(1), "w", encoding="utf-8"), torch.get_num_threads()
    for line in sys.stdin:
        job = from_json(line)
        torch.set_num_threads(threads)  # the job before may have had its own number
        with logged(Path(job.folder) / LOG):
            try:
                answer = attempt(job), False
            except (Interrupted, KeyboardInterrupt) as stop:
                answer = str(stop), True
        print(json.dumps(answer), file=answers, flush=True)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send what is printed to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = os.dup(1), os.dup(2)
    with open(path, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        for stream, number, descriptor in zip((sys.stdout, sys.stderr), (1, 2), kept, strict=True):
            stream.flush()
            os.dup2(descriptor, number)
            os.close(descriptor)


if __name__ == "__main__":
    main()
