"""One row per input, and the journal that keeps rows as they come.

The journal, ``results.jsonl``, is a file of JSON lines: ``{"header": {…}}``, then one row a line. What a batch gave is
forced to disk before the next is looked at, so a scan that is stopped, or killed, loses no more than a batch; half a
line at the end is left out when it is read. ``header["settings"]`` says what a row depends on beside its picture: a
resumed scan takes the rows of a journal with equal settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ..files import write_text


@dataclass(frozen=True)
class Row:
    """What is said of one input. None = not known: the file could not be read, or the file was not asked for.

    Attributes:
        path: of the picture, as it was given or found.
        sha256: of its bytes.
        width: in pixels, upright, as are boxes and heat map.
        height: likewise.
        format: of the file, such as ``JPEG``.
        verdict: ``edited``, ``real`` or ``uncertain``.
        probability: likelihood under the model that the picture was edited.
        boxes: ``{"xyxy": [left, top, right, bottom] in pixels, "score"}``, highest score first.
        cues: ``{"name", "prob"}``, most probable first.
        explanation: text for people.
        explained_by: ``model`` or ``template``.
        heatmap: the raw map as an 8-bit picture, path below the output folder, as are the next three.
        overlay: the picture under its heat map and boxes.
        npy: the raw map as float32.
        thumbnails: small picture and small overlay, for the page.
        seconds: for reading this file, and its share of what the model took for its batch.
        warnings: what makes the answer less certain.
        error: why there is no answer.
    """

    path: str
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    verdict: Literal["edited", "real", "uncertain"] | None = None
    probability: float | None = None
    boxes: tuple[Mapping[str, Any], ...] = ()
    cues: tuple[Mapping[str, Any], ...] = ()
    explanation: str | None = None
    explained_by: Literal["model", "template"] | None = None
    heatmap: str | None = None
    overlay: str | None = None
    npy: str | None = None
    thumbnails: tuple[str, str] | None = None
    seconds: float | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def files(self) -> dict[str, tuple[str, ...]]:
        """Kind of output file -> those that this row has."""
        one = {"heatmap": self.heatmap, "overlay": self.overlay, "npy": self.npy}
        return {name: (path,) for name, path in one.items() if path} | {"thumbnails": self.thumbnails or ()}


_NAMES = {field.name for field in fields(Row)}


class Journal:
    """``results.jsonl`` of an output folder, as a context.

    Args:
        path: the file.
        header: of this scan; its ``settings`` decide which old rows count.
        resume: keep the file's rows that were made with equal settings, instead of starting anew.

    Attributes:
        finished: heat map -> the last row without an error that it belongs to, of the kept ones. A name in the output
            tree, not the bytes, is the key: what a later picture of that name wrote over is no longer an earlier one's.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], resume: bool) -> None:
        kept = _read(path, header["settings"]) if resume else []
        self.finished = {row.heatmap: row for row in kept if row.heatmap and not row.error}
        lines = [{"header": header}, *(row.to_dict() for row in self.finished.values())]
        write_text(path, "".join(f"{as_json(line)}\n" for line in lines))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows, but those it has already, and force them to disk."""
        new = [row for row in rows if self.finished.get(row.heatmap or "") != row]
        self._file.writelines(f"{as_json(row.to_dict())}\n" for row in new)
        self._file.flush()
        os.fsync(self._file.fileno())

    def reusable(self, heatmap: str, digest: str | None, wanted: Iterable[str], out: Path) -> Row | None:
        """The finished row of that heat map, if it is of these bytes and its files of the kinds `wanted` are there."""
        row = self.finished.get(heatmap)
        if row is None or row.sha256 != digest:
            return None
        files = row.files
        there = all(files.get(kind) and all((out / each).is_file() for each in files[kind]) for kind in wanted)
        return row if there else None


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON text that any UTF-8 file can hold: bytes of file names that are no UTF-8 stay as their escapes.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode()


def _read(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    """The rows of a journal made with `settings`, which is compared as JSON has it."""
    wanted, matches, rows = json.loads(as_json(settings)), False, []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.split("\n"):  # not splitlines, which also splits at U+2028 inside a string
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict):
            continue
        if "header" in entry:
            matches = isinstance(entry["header"], dict) and entry["header"].get("settings") == wanted
        elif matches and entry.keys() == _NAMES:
            rows.append(_row(entry))
    return rows


def _row(entry: dict[str, Any]) -> Row:
    lists = {name: tuple(entry[name]) for name in ("boxes", "cues", "warnings")}
    row = replace(Row(**entry), **lists)
    return replace(row, thumbnails=tuple(row.thumbnails)) if row.thumbnails else row  # type: ignore[arg-type]
