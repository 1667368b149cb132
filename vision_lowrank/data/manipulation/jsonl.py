"""Data set ``manipulation``: ManipBench's schema, one file to split by source or a folder of ready-made splits.

`path` is a JSON Lines file, split by its `split` keys and by source where a picture has none; or a folder with
``train.jsonl``, ``test.jsonl`` and perhaps ``val.jsonl`` (a tenth of the training sources otherwise), or as usual
instead, such as ``validation.jsonl``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ...config.marks import FileOrFolder
from ...errors import DataError
from ...registry import register
from ..images import listed
from .base import ManipulationSplits
from .options import HeldOut, read_parts, splits_of
from .schema import read_schema


class ManipulationConfig(HeldOut):
    """Options of ``data: {type: manipulation}``."""

    type: Literal["manipulation"] = "manipulation"
    path: FileOrFolder = Field(description="FILE.jsonl, or a folder with train.jsonl, test.jsonl and perhaps val.jsonl")


@register(
    "data",
    "manipulation",
    summary="real and edited pictures in ManipBench's schema (JSON Lines)",
    paper="arXiv 2511.14259",
    config=ManipulationConfig,
    gives="edits",
)
def manipulation(config: ManipulationConfig) -> ManipulationSplits:
    """Load the splits of a file or folder of the schema.

    Raises:
        DataError: a file is missing or wrong, twins are in two splits, or an editor or category never occurs.
    """
    path = Path(config.path).expanduser()
    if not path.is_dir():
        return splits_of(read_schema(path), config)
    parts = read_parts(path, ".jsonl", read_schema)
    if parts:
        return splits_of(parts, config)
    files = sorted(path.glob("*.jsonl"))
    if len(files) == 1:
        return splits_of(read_schema(files[0]), config)
    raise DataError(
        f"'{path}' has no train.jsonl, and not one JSON Lines file but {listed(f.name for f in files) or 'none'}."
    )
