"""What an adapter's folder says of itself in ``vision_lowrank.json``: its type, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import ArtefactError
from ..files import recover
from ..json_files import Closed, Strict, check_object, read_object

TENSORS, FACTORS, RECORD, BASE = (
    "adapter_model.safetensors", "factors.safetensors", "vision_lowrank.json", "base.safetensors"
)  # fmt: skip
FORMAT = 1
COPY = "get a fresh copy"

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Fingerprint = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
Blocks = str | list[Annotated[int, Field(ge=-1000, le=1000)]]


class Place(Closed):
    """:class:`.folder.Attachment` as JSON has it."""

    backbone: Text
    weights: Text | None
    fingerprint: Fingerprint
    towers: list[Text]
    layers: Blocks | dict[str, Blocks]
    modules: list[Text]
    options: dict[str, Any]


class Factors(Closed):
    """In which of the two files the factors stand, their SHA-256, and the scale of B A."""

    file: Literal["adapter_model.safetensors", "factors.safetensors"]
    sha256: Hash
    scale: float = Field(ge=-1e6, le=1e6)


class AdapterRecord(Strict):
    """``vision_lowrank.json``.

    `base` is the SHA-256 of random base weights, which lie beside the adapter; `dtype` is the coarsest of the model's.
    """

    format: int
    attachment: Place
    sha256: Hash
    factors: Factors | None
    probe: dict[str, list[float]]
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    base: Hash | None = None


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of an adapter's folder.

    Raises:
        ArtefactError: missing or damaged, or of another format.
    """
    recover(folder)
    path = folder / RECORD
    if not path.is_file():
        raise ArtefactError(f"'{path}' is missing: load a plain PEFT adapter with peft.PeftModel.from_pretrained.")
    record = read_object(path, COPY)
    if record.get("format", FORMAT) != FORMAT:
        found = str(record["format"])[:20]
        raise ArtefactError(f"'{path}' has format {found}, not {FORMAT}: use the version that wrote it.")
    check_object(path, record, AdapterRecord, COPY)
    return record
