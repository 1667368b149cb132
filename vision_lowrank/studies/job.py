"""A job: one training, or one measurement, with all that another process or machine needs for it, as JSON.

What a job finds is a file in its folder, and the job is done when the file is there. So a launcher
(:mod:`.launch`, :mod:`.cluster`) has nothing to bring back but the reasons of those that could not be done, and what
was done once is never done again.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Protocol

from ..config import RunConfig, validate
from ..engine import Interrupted
from ..errors import UserError
from ..files import write_text
from ..lock import locked
from ..registry import registry
from .run import run_seed
from .timing import step_times
from .variants import one_line

LOG = "log.txt"
ROUNDS = 10


class Job(Protocol):
    """What a launcher needs to know of a job.

    Attributes:
        name: what progress lines call it.
        folder: takes its result and its log.
    """

    name: str
    folder: str

    @property
    def result(self) -> Path:
        """The file that is there when the job is done."""
        ...

    def run(self) -> None:
        """Do it, in this process; what was begun goes on."""
        ...


@dataclass(frozen=True)
class Training:
    """One seed of one config.

    Attributes:
        name: what progress lines call it.
        folder: of the seed.
        config: the resolved settings, as :func:`~vision_lowrank.config.to_tree` gives them.
        seed: of everything random.
        shared: folder of what is the same for several jobs: evaluations of the model without training.
    """

    kind: ClassVar[str] = "training"

    name: str
    folder: str
    config: dict[str, Any]
    seed: int
    shared: str

    @property
    def result(self) -> Path:
        """What :func:`~vision_lowrank.studies.run.run_seed` gives."""
        return Path(self.folder) / "result.json"

    def run(self) -> None:
        """Train and evaluate; a baseline that another job has evaluated is taken over."""
        config, own = validate(self.config), Path(self.folder) / "baseline.json"
        shared = self._shared_baseline(config)
        if shared and shared.is_file() and not own.is_file():
            write_text(own, shared.read_text(encoding="utf-8"))
        with locked(Path(self.folder)):
            result = run_seed(config, self.seed, Path(self.folder))
        if shared and not shared.is_file():
            write_text(shared, json.dumps(result["baseline"]) + "\n")

    def _shared_baseline(self, config: RunConfig) -> Path | None:
        """Return the file of the baseline that this job has in common with others; None where it is its own."""
        identity = registry.get("task", config.task.type).target.baseline_identity(config)
        if identity is None:
            return None
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
        return Path(self.shared) / f"baseline-{digest}.json"


@dataclass(frozen=True)
class Timing:
    """A step of one config beside that of another.

    Attributes:
        name: what progress lines call it.
        folder: of the variant.
        config: the resolved settings.
        beside: those of the other config.
    """

    kind: ClassVar[str] = "timing"

    name: str
    folder: str
    config: dict[str, Any]
    beside: dict[str, Any]

    @property
    def result(self) -> Path:
        """Median ``step_seconds``, and ``step_ratio``, the median of the ratios to the other config's."""
        return Path(self.folder) / "cost.json"

    def run(self) -> None:
        """Time both, taking turns."""
        times = step_times([validate(self.beside), validate(self.config)], ROUNDS)
        ratio = median(own / other for other, own in zip(*times, strict=True))
        write_text(self.result, json.dumps({"step_seconds": median(times[1]), "step_ratio": ratio}) + "\n")


KINDS = {job.kind: job for job in (Training, Timing)}


def to_json(job: Training | Timing) -> str:
    """Return the job as one line of text."""
    return json.dumps({"kind": job.kind, **asdict(job)})


def from_json(text: str) -> Training | Timing:
    """Read the job that :func:`to_json` wrote."""
    values = json.loads(text)
    return KINDS[values.pop("kind")](**values)


def attempt(job: Job) -> str | None:
    """Do a job, and return the reason why it could not be done, None where it was.

    What is nobody's mistake (out of memory, for one) is written with its traceback into the job's log.

    Raises:
        Interrupted: it was asked to stop, and has written a checkpoint.
    """
    try:
        job.run()
    except Interrupted:
        raise
    except UserError as error:
        return one_line(error)
    except Exception as error:  # one job's misfortune is not the study's
        path = Path(job.folder) / LOG
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as log:
            log.write(traceback.format_exc())
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None
