"""What the section "Manipulation" reads: the facts of a seed, ``details.json`` and ``gallery.json``."""

from __future__ import annotations

from pydantic import Field

from ..reading import Checked, Facts, Number, Picture


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
    table: list[LayerRow] = Field(default_factory=list)


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


class DetectorFacts(Checked):
    """``facts.manipulation`` of a seed."""

    layers: Layers
    contrast: dict[str, Contrast] | None = None
    calibration: CalibrationFacts


class ManipulationFacts(Facts):
    """Facts of a seed, with the detector's."""

    manipulation: DetectorFacts | None = None


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

    intervals: dict[str, Interval] = Field(default_factory=dict)
    slices: dict[str, dict[str, Slice]] = Field(default_factory=dict)


class Details(Checked):
    """``details.json``."""

    sets: dict[str, SetDetails] = Field(default_factory=dict)


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
