"""What ``artefact.json`` says of a detector of edits: its type, and whether its decoder is the one that was saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from ...attachment.record import COPY
from ...data.manipulation.framing import Mode
from ...errors import ArtefactError
from ...json_files import Closed, read_header
from ..about import About, Text
from .decoders import Kind, make_decoder

Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class FramingAbout(Closed):
    """:class:`~vision_lowrank.data.manipulation.framing.Framing` as JSON has it."""

    mode: Mode
    size: int = Field(ge=1)
    max_tiles: int = Field(6, ge=1, le=1024)


class DecoderAbout(Closed):
    """The arguments of :func:`.decoders.make_decoder` beside the width of the states and the number of cues."""

    kind: Kind
    boxes: int = Field(10, ge=1, le=10_000)
    width: int = Field(256, ge=4, le=65_536)
    heads: int = Field(8, ge=1, le=1024)
    dropout: float = Field(0.1, ge=0, lt=1)


class CalibrationAbout(Closed):
    """:class:`~vision_lowrank.metrics.calibration.Calibration` as JSON has it."""

    temperature: float = Field(gt=0)
    threshold: float = Field(ge=0)
    origin: str
    uncertain: Pair | None
    interval: Pair | None
    reals: int = Field(ge=0)
    edits: int = Field(ge=0)
    real_scores: list[float]


class ManipulationAbout(About):
    """What ``artefact.json`` says of a detector."""

    decoder: DecoderAbout
    framing: FramingAbout
    layer: int = Field(ge=0, le=10_000)
    cues: list[Text]
    calibration: CalibrationAbout
    about: dict[str, Any]
    tower_adapter: bool


def check_decoder(path: Path, width: int, about: Mapping[str, Any]) -> None:
    """Refuse a decoder whose file holds other tensors than `about` describes, before it is built.

    Args:
        path: of its tensors.
        width: of the backbone's states.
        about: ``artefact.json``, checked.

    Raises:
        ArtefactError: they differ, or the file cannot be read.
    """
    if not path.is_file():
        raise ArtefactError(f"'{path}' is missing: the artefact is incomplete; {COPY}.")
    with torch.device("meta"):  # which allocates nothing, so that artefact.json decides no size
        decoder = make_decoder(width, cues=len(about["cues"]), **about["decoder"])
    if read_header(path) != {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}:
        raise ArtefactError(f"'{path}': its tensors are not those of the decoder that artefact.json describes; {COPY}.")
