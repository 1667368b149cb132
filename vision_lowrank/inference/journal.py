"""One row per input, and the journal that keeps rows as they come.

The journal, ``results.jsonl``, is a file of JSON lines: ``{"header": {…}}``, then one row a line. What a batch gave is
forced to disk before the next is looked at, so a scan that is stopped, or killed, loses no more than a batch; half a
line at the end is left out when it is read. ``header["settings"]`` says what a row depends on beside its picture: only
a scan with equal settings can be resumed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ..errors import UserError
from ..files import write_text


@dataclass(frozen=True)
class ScanRow:
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
        """Return plain values for JSON."""
        return asdict(self)

    @property
    def files(self) -> dict[str, tuple[str, ...]]:
        """Kind of output file -> those that this row has."""
        one = {"heatmap": self.heatmap, "overlay": self.overlay, "npy": self.npy}
        return {name: (path,) for name, path in one.items() if path} | {"thumbnails": self.thumbnails or ()}


_NAMES = {field.name for field in fields(ScanRow)}


class Journal:
    """``results.jsonl`` of an output folder, as a context.

    Args:
        path: the file.
        header: of this scan, with its ``settings``.
        resume: keep the file's rows instead of starting anew.
        heatmaps: those that this scan may write over, and the other files of their rows with them.

    Attributes:
        finished: heat map -> the last row without an error that it belongs to, of the kept ones. A name in the output
            tree, not the bytes, is the key: what a later picture of that name wrote over is no longer an earlier one's.

    Raises:
        UserError: the rows to be kept were made with other settings.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], resume: bool, heatmaps: Collection[str | None] = ()
    ) -> None:
        kept = _read(path, header["settings"]) if resume else []
        self.finished = {row.heatmap: row for row in kept if row.heatmap and not row.error}
        self._lasting = {row.sha256: row for row in self.finished.values() if row.heatmap not in heatmaps}
        lines = [{"header": header}, *(row.to_dict() for row in self.finished.values())]
        write_text(path, "".join(f"{as_json(line)}\n" for line in lines))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, rows: Iterable[ScanRow]) -> None:
        """Write rows, but those it has already, and force them to disk."""
        new = [row for row in rows if not _says(self.finished.get(row.heatmap or ""), row)]
        self._file.writelines(f"{as_json(row.to_dict())}\n" for row in new)
        self._file.flush()
        os.fsync(self._file.fileno())

    def reusable(
        self, names: Mapping[str, Sequence[str]], digest: str | None, wanted: Collection[str], out: Path
    ) -> ScanRow | None:
        """Find a finished row of these bytes, with all files of the kinds `wanted` in place and no others.

        It is the one with the heat map of `names` (kind -> paths), else one that the same bytes got under another name,
        whose files are copied: inputs change their names when others are added.
        """
        for row in (self.finished.get(names["heatmap"][0]), self._lasting.get(digest)):
            if row is None or digest is None or row.sha256 != digest or not _there(row, wanted, out):
                continue
            if row.heatmap != names["heatmap"][0] and not _copied(row, names, wanted, out):
                continue
            one = {kind: names[kind][0] if kind in wanted else None for kind in ("heatmap", "overlay", "npy")}
            return replace(row, **one, thumbnails=tuple(names["thumbnails"]) if "thumbnails" in wanted else None)
        return None


def as_json(value: Any, indent: int | None = None) -> str:
    """Return JSON text that any UTF-8 file can hold: bytes of file names that are no UTF-8 stay as their escapes.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode()


def _says(known: ScanRow | None, row: ScanRow) -> bool:
    """Tell whether `known` says all that `row` says: it may have more files, and be of the same bytes elsewhere."""
    if known is None:
        return False
    more = {kind: None for kind in known.files if not row.files.get(kind)}
    return replace(known, path=row.path, **more) == row


def _there(row: ScanRow, wanted: Iterable[str], out: Path) -> bool:
    files = row.files
    return all(files.get(kind) and all((out / each).is_file() for each in files[kind]) for kind in wanted)


def _copied(row: ScanRow, names: Mapping[str, Sequence[str]], wanted: Iterable[str], out: Path) -> bool:
    """Copy files of a row to other names; False where that fails, which writing them anew will say."""
    try:
        for old, new in ((old, new) for kind in wanted for old, new in zip(row.files[kind], names[kind], strict=True)):
            (out / new).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / old, out / new)
    except OSError:
        return False
    return True


def _read(path: Path, settings: Mapping[str, Any]) -> list[ScanRow]:
    """Read the rows of a journal made with `settings`, which is compared as JSON has it."""
    wanted, headed, rows = json.loads(as_json(settings)), False, []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.split("\n"):  # not splitlines, which also splits at U+2028 inside a string
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict):
            continue
        if isinstance(entry.get("header"), dict):
            headed = True
            changes = _changes("settings", entry["header"].get("settings"), wanted)
            if changes:
                raise UserError(
                    f"--resume: '{path}' was made with other settings ({'; '.join(changes)}): repeat the old options, "
                    "give another --out, or leave --resume out to start anew."
                )
        elif headed and entry.keys() == _NAMES:
            rows.append(_row(entry))
    return rows


def _changes(name: str, old: Any, new: Any) -> list[str]:
    """List what differs, such as ``threshold 0.5, now 0.9``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys((*old, *new))
        return [change for key in keys for change in _changes(key, old.get(key), new.get(key))]
    return [] if old == new else [f"{name} {as_json(old)}, now {as_json(new)}"]


def _row(entry: dict[str, Any]) -> ScanRow:
    lists = {name: tuple(entry[name]) for name in ("boxes", "cues", "warnings")}
    row = replace(ScanRow(**entry), **lists)
    return replace(row, thumbnails=tuple(row.thumbnails)) if row.thumbnails else row  # type: ignore[arg-type]
