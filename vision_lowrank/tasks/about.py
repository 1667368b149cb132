"""What an artefact says of itself, ``artefact.json``: read without torch, so that a wrong folder is refused at once.

The folder of an adapter alone, as ``vl.save`` writes it, says the same in ``vision_lowrank.json``. Everything is
checked by its type (:class:`About`, of which tasks have their own), and by :mod:`.trust`: what an artefact says is
what somebody else may have written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..attachment.record import BASE, COPY, RECORD, Fingerprint, Hash, Text, read_record
from ..errors import ArtefactError
from ..files import recover, sibling
from ..json_files import Closed, Strict, check_object, read_object

ARTEFACT = "artefact.json"
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]
Scales = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]


class Spec(Strict):
    """The arguments of ``load_backbone``; its further keys are the family's options."""

    name: Text
    weights: Text | None
    image_size: Annotated[int, Field(ge=1)] | None = None


class Input(Closed):
    """:class:`~vision_lowrank.data.transforms.Preprocess` as JSON has it."""

    size: int = Field(ge=1)
    mean: Channels
    std: Scales
    interpolation: Text = "bicubic"
    crop_pct: float = Field(1.0, gt=0, le=1)
    resize: Literal["shortest", "squash"] = "shortest"


class RunRecord(Strict):
    """The run that made an artefact; further keys are versions and hardware."""

    config: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None


class About(Strict):
    """What every artefact says, whatever its task.

    Attributes:
        task: by which its kind of model is chosen.
        backbone: what its base is loaded by.
        fingerprint: of the base's weights, before any of them trained.
        preprocess: the base's input.
        adapter: whether there is one.
        trained_base: names of the base's tensors that were trained themselves.
        tensors: file -> SHA-256, of all tensor files but the adapter's, whose folder has a record of its own.
        record: of the run.
    """

    task: Text
    backbone: Spec
    fingerprint: Fingerprint
    preprocess: Input
    adapter: bool
    trained_base: list[Text]
    tensors: dict[Annotated[str, Field(pattern=r"^[\w\-]+\.safetensors$")], Hash]
    record: RunRecord


def read_about(folder: Path, model: type[About] = About) -> dict[str, Any]:
    """Read ``artefact.json``; for an adapter alone, return what such a file would say of it.

    Args:
        folder: the artefact.
        model: the type of what a task's artefacts say; not asked of an adapter alone.

    Raises:
        ArtefactError: the file is missing or not valid.
    """
    recover(folder)
    path = folder / ARTEFACT
    if not path.is_file() and (folder / RECORD).is_file():
        return _about_adapter(folder)
    if not path.is_file():
        inside = sorted(str(found.parent) for found in folder.rglob(ARTEFACT)) if folder.is_dir() else []
        hint = f" Did you mean {inside[0]}?" if inside else "" if folder.is_dir() else sibling(folder)
        raise ArtefactError(f"{folder}: no artefact here (artefact.json is missing).{hint}")
    about = read_object(path, COPY)
    check_object(path, about, model, COPY)
    return about


def _about_adapter(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    place = record["attachment"]
    return {
        "task": "adapter",
        "backbone": {**place["options"], "name": place["backbone"], "weights": place["weights"]},
        "fingerprint": place["fingerprint"],
        "preprocess": None,
        "adapter": True,
        "trained_base": [],
        "tensors": {BASE: record["base"]} if record.get("base") else {},
        "record": {},
    }
