"""What a report reads of what a run left on disk: JSON, checked, with one line that names the place of any damage.

:class:`Result` is ``result.json``; :class:`Mistake`, :class:`Details` and :class:`Group` are in the files of a seed.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import ArtefactError
from .sections.incremental import SessionFacts

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


class LayerRow(Checked):
    """One layer's terms (:mod:`vision_lowrank.tasks.manipulation.layer_discrimination`)."""

    layer: int
    kl: Number
    ldr: Number
    entropy: Number
    score: Number
    probe: Number


class Layers(Checked):
    """The layer that the decoders read, of so many, and the table it was chosen from."""

    chosen: int
    of: int
    criterion: str | None = None
    table: list[LayerRow] = []


class Contrast(Checked):
    """How far twins are apart in the vision tower, before or after the contrast."""

    twin_cosine: Number = None
    probe_auc: Number = None


class CalibrationFacts(Checked):
    """From logits to verdicts."""

    temperature: float
    threshold: float
    origin: str
    uncertain: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None
    reals: int
    edits: int


class ManipulationFacts(Checked):
    """``facts.manipulation`` of a seed."""

    layers: Layers
    contrast: dict[str, Contrast] | None = None
    calibration: CalibrationFacts


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
    """What a task says of itself; a task without classes leaves most of it out."""

    backbone: dict[str, Any] = {}
    classes: int | None = Field(None, ge=1)
    templates: list[str] = []
    train_images: int | None = None
    train_hash: str = ""
    test_hashes: dict[str, str] = {}
    tests: dict[str, SetFacts] = {}
    trainable_parameters: int | None = None
    adapter_parameters: int | None = None
    incremental: SessionFacts | None = None
    manipulation: ManipulationFacts | None = None


class Cost(Checked):
    """Seconds of the median step and of all training, bytes, and the size of the model with its adapter."""

    step_seconds: Number = None
    peak_memory: Number = None
    train_seconds: Number = None
    total_parameters: Number = None


class SeedResult(Checked):
    """What one seed gave."""

    seed: int
    baseline: dict[str, Number] = {}
    metrics: dict[str, Number] = {}
    facts: Facts = Facts()
    cost: Cost = Cost()
    coverage: Coverage | None = None
    classes: list[str] = []
    confusion: dict[str, list[list[int]]] = {}


class Result(Checked):
    """``result.json``."""

    name: str
    task: str
    command: str = ""
    config: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    baseline: dict[str, Score] = {}
    metrics: dict[str, Score]
    seeds: dict[str, SeedResult] = Field(min_length=1)


class Mistake(Checked):
    """One wrongly classified picture."""

    set: str = ""
    key: str
    true: str
    predicted: str
    probability: float
    image: Picture = ""


class Interval(Checked):
    """95 % bootstrap interval."""

    low: Number
    high: Number


class Slice(Checked):
    """Edits of one editor or category."""

    count: float = 0
    reason: str = ""


class SetDetails(Checked):
    """Of one test set."""

    intervals: dict[str, Interval] = {}
    slices: dict[str, dict[str, Slice]] = {}


class Details(Checked):
    """``details.json``."""

    sets: dict[str, SetDetails] = {}


class Example(Checked):
    """One picture of the gallery, with what was found drawn on it."""

    set: str
    id: str
    editor: str | None = None
    verdict: str
    probability: float
    quality: Number = None
    measure: str = ""
    image: Picture = ""


class Group(Checked):
    """Pictures of a kind: how they were chosen, of how many."""

    title: str
    rule: str
    count: int
    pictures: list[Example]


def read_checked(path: Path, kind: type[T]) -> T | None:
    """The content of a JSON file as `kind`, None where there is no file.

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
