"""What a report reads of what a run left on disk: JSON, checked, with one line that names the place of any damage.

:class:`Result` is ``result.json``. What a task adds to the facts of a seed, and its files in a seed's folder,
are defined with its section of the report (:mod:`.sections`), which uses :func:`read_checked` too.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import ArtefactError

DATA_URI = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]+")
T = TypeVar("T")
Number = Annotated[float | None, AfterValidator(lambda x: x if x is not None and math.isfinite(x) else None)]
Picture = Annotated[str, AfterValidator(lambda uri: uri if DATA_URI.fullmatch(uri) else "")]  # anything else: none


class Checked(BaseModel):
    """Base of what is read from disk: keys that the report does not show are ignored."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)


class Score(Checked):
    """Mean and population standard deviation over n seeds; None is NaN, infinite or unknown."""

    mean: Number
    std: Number = None
    n: int = 1


class CoverageRow(Checked):
    """One adapted module."""

    module: str
    adapter: str
    parameters: int
    called: bool
    gradient_reached: bool


class Coverage(Checked):
    """All adapted modules of a seed."""

    rows: list[CoverageRow] = []


class SetFacts(Checked):
    """A test set."""

    pictures: int
    hash: str


class Facts(Checked):
    """The facts of a seed that every task may give; a section of the report adds its own in a subclass."""

    backbone: dict[str, Any] = {}
    train_images: int | None = None
    train_hash: str = ""
    test_hashes: dict[str, str] = {}
    tests: dict[str, SetFacts] = {}
    trainable_parameters: int | None = None
    adapter_parameters: int | None = None


F = TypeVar("F", bound=Facts)


class Cost(Checked):
    """Seconds of the median step and of all training, bytes, and the size of the model with its adapter."""

    step_seconds: Number = None
    peak_memory: Number = None
    train_seconds: Number = None
    total_parameters: Number = None


class SeedResult(Checked, Generic[F]):
    """What one seed gave."""

    seed: int
    baseline: dict[str, Number] = {}
    metrics: dict[str, Number] = {}
    facts: F
    cost: Cost = Cost()
    coverage: Coverage | None = None


class TaskName(Checked):
    """The task that ``result.json`` is of, by which everything else in it is read."""

    task: str


class Result(TaskName, Generic[F]):
    """``result.json``.

    Attributes:
        headline: name of the metric that the report leads with; the first one where it is empty or unknown.
        selects_by: full name of the validation metric that states are chosen by; any where it is empty or unknown.
    """

    name: str
    headline: str = ""
    selects_by: str = ""
    command: str = ""
    config: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    baseline: dict[str, Score] = {}
    metrics: dict[str, Score]
    seeds: dict[str, SeedResult[F]] = Field(min_length=1)


def read_checked(path: Path, kind: type[T]) -> T | None:
    """Read the content of a JSON file as `kind`, None where there is no file.

    Raises:
        ArtefactError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place, reason = ".".join(map(str, first["loc"])) or "top level", first["msg"]
        raise ArtefactError(f"{path}: damaged at {place} ({reason}): run the evaluation again.") from None
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path}: damaged, not valid JSON ({error}): run the evaluation again.") from None
