"""What of a data set is finished: a line per picture, so that an interrupted run goes on after the last of them.

``progress.jsonl`` holds records in the schema's form, and ``{"id": ..., "skipped": reason}`` for what was left out. A
line counts if it is whole and the files that it names are there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..manipulation.base import PictureRecord
from ..manipulation.schema import record_of, row_of
from .base import VOCABULARY

JOURNAL = "progress.jsonl"


@dataclass
class Journal:
    """What is finished.

    Attributes:
        out: folder of the data set.
        records: id -> record of a written picture.
        skipped: id -> why the picture was left out.
    """

    out: Path
    records: dict[str, PictureRecord] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file."""
        return self.out / JOURNAL

    @contextmanager
    def opened(self) -> Iterator[Journal]:
        """Read what is there, drop a line that was cut short, and append to it."""
        self.path.touch()
        lines = self.path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        os.truncate(self.path, sum(map(len, whole)))
        for line in whole:
            row = json.loads(line)
            if "skipped" in row:
                self.skipped[row["id"]] = row["skipped"]
            elif all((self.out / row[key]).is_file() for key in ("image", "mask") if key in row):
                self.records[row["id"]] = record_of(line, VOCABULARY)
        with open(self.path, "a", encoding="utf-8") as self._file:
            yield self

    def __contains__(self, name: str) -> bool:
        return name in self.records or name in self.skipped

    def add(self, record: PictureRecord) -> None:
        """Note a picture whose files are written."""
        self.records[record.id] = record
        self._line(row_of(record))

    def skip(self, name: str, reason: str) -> None:
        """Note a picture that will not be made."""
        self.skipped[name] = reason
        self._line({"id": name, "skipped": reason})

    def _line(self, row: dict[str, object]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
