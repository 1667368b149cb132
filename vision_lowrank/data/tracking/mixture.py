"""``data: {type: clip_mixture}``: several data sets of clips as one, training pairs drawn from each by weight.

LoRAT trains on LaSOT, TrackingNet, COCO and GOT-10k in equal parts, however many clips each has (arXiv 2403.05231).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ...config.marks import OfKind
from ...config.schema import Section
from ...errors import UserError
from ...registry import register
from ..gives import read_data
from .base import ClipSet, ClipSplits

DataSection = Annotated[Any, OfKind("data")]


class ClipMixtureConfig(Section):
    """Options of ``data: {type: clip_mixture}``."""

    type: Literal["clip_mixture"] = "clip_mixture"
    train: tuple[DataSection, ...] = Field((), description="data sections whose training clips pairs are drawn from")
    weights: tuple[Annotated[float, Field(ge=0, le=1e6)], ...] = Field(
        (), description="shares of the training sets; equal if not given"
    )
    val: DataSection | None = Field(None, description="data section whose validation or test clips select")
    tests: tuple[DataSection, ...] = Field((), description="data sections whose test clips are evaluated")


@register(
    "data", "clip_mixture", summary="several sets of clips, training pairs drawn by weight", config=ClipMixtureConfig,
    gives="clips",
)  # fmt: skip
def clip_mixture(config: ClipMixtureConfig) -> ClipSplits:
    """Read the sets.

    Raises:
        UserError: a section gives no clips of the kind that it is listed for, or weights are not one for each set.
    """
    sets = tuple(_training(section) for section in config.train)
    if config.weights and len(config.weights) != len(sets):
        raise UserError(f"data.weights: {len(config.weights)} for {len(sets)} training sets: give one for each.")
    val = _validation(config.val) if config.val is not None else ClipSet("val", ())
    tests: dict[str, ClipSet] = {}
    for section in config.tests:
        for name, clips in read_data(section, "clips").tests.items():
            tests[_unused(name, tests)] = clips
    train = sets[0] if len(sets) == 1 else ClipSet("mixture", ())
    return ClipSplits(train, val, tests, sets, config.weights)


def _training(section: Any) -> ClipSet:
    clips = read_data(section, "clips").train
    if not len(clips):
        raise UserError(f"data.train: {section.type} gives no training clips: set its split to train.")
    return clips


def _validation(section: Any) -> ClipSet:
    splits: ClipSplits = read_data(section, "clips")
    clips = splits.val if len(splits.val) else next(iter(splits.tests.values()), splits.val)
    if not len(clips):
        raise UserError(f"data.val: {section.type} gives no clips to select by: set its split to val.")
    return clips


def _unused(name: str, taken: dict[str, ClipSet]) -> str:
    """Return a name that no other test set has."""
    number = 2
    while (numbered := name if number == 2 and name not in taken else f"{name}-{number}") in taken:
        number += 1
    return numbered
