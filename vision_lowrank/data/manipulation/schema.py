"""ManipBench's annotation schema on disk: JSON Lines, one object per picture, streamed.

``FILE.jsonl`` (UTF-8) holds one object per line whose keys are the fields of :class:`~.base.PictureRecord`; `id`,
`image` and `label` are required, paths are relative to the file. A key that is absent or null was NOT ANNOTATED, an
empty list was annotated and there is none::

    {"id": "a1-e3", "image": "edited/a1_e3.png", "label": 1, "source_id": "a1", "editor": "qwen-image-edit",
     "category": "replacement", "boxes": [{"xyxy": [312, 200, 590, 610], "cues": ["texture"]}], "mask": "masks/a1.png"}

Without `source_id` a picture is a source of its own. Boxes are left, top, right, bottom in pixels; up to 2 px beyond
the picture are clipped, more is an error. ``schema.json`` beside it holds the vocabularies, whose order is the order of
a head's outputs: ``{"version": 1, "cues": [...], "categories": {group: [...]}}``; without it they are ManipBench's.

A set of 450,000 lines is kept as one byte offset per line; a line is parsed when its record is asked for.

Source: ManipBench (arXiv 2511.14259) for what is annotated; keys and layout are this project's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, near_miss
from ...files import write_text
from ..images import listed
from .base import Box, ManipulationSet, PictureRecord, Records, Region, Vocabulary

HEADER, VERSION = "schema.json", 1
SLACK = 2.0  # pixels that a box may reach beyond its picture

KEYS = tuple(field.name for field in fields(PictureRecord))
REQUIRED = ("id", "image", "label")
COUNTS = ("width", "height")
CHOICES = {
    "scope": ("local", "global", "unknown"),
    "split": ("train", "val", "test"),
    "editor_access": ("open", "closed"),
}
TEXTS = tuple(key for key in KEYS if key not in ("label", *COUNTS, *CHOICES, "boxes", "cues", "derived"))
REPEATED = ("source_id", "group", "editor", "category", "annotator", "prompt")  # one string in memory for all rows


@dataclass(frozen=True)
class JsonLines(Records):
    """The records of a file, parsed when asked for. It holds no open file: workers and pickles may have it.

    Attributes:
        path: the file.
        vocabulary: the names that may occur.
        offsets: (N,) int64, where each line starts; empty lines are passed over.
    """

    path: Path
    vocabulary: Vocabulary
    offsets: np.ndarray

    @classmethod
    def index(cls, path: Path, vocabulary: Vocabulary) -> JsonLines:
        """Find the lines of `path`."""
        offsets, start = [], 0
        with open(path, "rb") as file:
            for line in file:
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    offsets.append(start)
                start += len(line)
        return cls(path, vocabulary, np.asarray(offsets, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets)

    def record(self, index: int) -> PictureRecord:
        """Read the record of line `index` from the file.

        Raises:
            DataError: the line is not a record.
        """
        with open(self.path, "rb") as file:
            file.seek(int(self.offsets[index]))
            line = file.readline()
        try:
            return record_of(line, self.vocabulary)
        except DataError as error:
            raise DataError(f"'{self.path}' line {self._line(index)}: {error}") from None

    def __iter__(self) -> Iterator[PictureRecord]:
        for where, line in numbered(self.path):
            try:
                record = record_of(line, self.vocabulary)
            except DataError as error:
                raise DataError(f"'{self.path}' line {where}: {error}") from None
            yield record

    def _line(self, item: int) -> int:
        with open(self.path, "rb") as file:
            return file.read(int(self.offsets[item])).count(b"\n") + 1


def read_schema(path: Path, name: str | None = None) -> ManipulationSet:
    """Read a file of the schema; every line is checked once.

    Args:
        path: the JSON Lines file.
        name: of the set; default the file's.

    Raises:
        DataError: it is missing or empty, or a line is wrong: names file, line, key and reason.
    """
    path = Path(path)
    if not path.is_file():
        found = [each.name for each in path.parent.glob("*.jsonl")] if path.parent.is_dir() else []
        raise DataError(f"file '{path}' does not exist.{near_miss(path.name, found)} Check the path.")
    vocabulary = read_vocabulary(path.parent)
    records = JsonLines.index(path, vocabulary)
    if not len(records):
        raise DataError(f"file '{path}' has no lines: it needs one JSON object per picture.")
    return ManipulationSet.of(name or path.stem, records, path.parent, vocabulary)


def write_schema(path: Path, records: Iterable[PictureRecord], vocabulary: Vocabulary) -> None:
    """Write records as they come, and ``schema.json`` beside; the file appears when it is complete.

    Raises:
        DataError: a record contradicts the schema, or the folder's ``schema.json`` holds another vocabulary.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header = path.parent / HEADER
    if header.exists() and read_vocabulary(path.parent) != vocabulary:
        raise DataError(f"'{header}' holds another vocabulary: write to another folder, or remove it.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            for record in records:
                row = row_of(record)
                problems = problems_of(row, vocabulary)
                if problems:
                    raise DataError(f"record '{record.id}' cannot be written to '{path}': {'; '.join(problems)}.")
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    categories = {group: list(names) for group, names in vocabulary.categories.items()}
    content = {"version": VERSION, "cues": list(vocabulary.cues), "categories": categories}
    write_text(header, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabularies of ``folder/schema.json``, or take ManipBench's where there is no such file.

    Raises:
        DataError: the file is no valid header.
    """
    path = folder / HEADER
    if not path.exists():
        return Vocabulary()
    header = parsed(path.read_bytes(), f"'{path}'")
    if not isinstance(header, dict) or set(header) - {"version", "cues", "categories"}:
        raise DataError(f"'{path}' must be an object with the keys version, cues and categories.")
    if header.get("version", VERSION) != VERSION:
        raise DataError(f"'{path}' has version {header['version']}, this program reads {VERSION}: update it.")
    cues, groups = header.get("cues", list(Vocabulary().cues)), header.get("categories", Vocabulary().categories)
    for names in (cues, *(groups.values() if isinstance(groups, dict) else [None])):
        if not _are_names(names):
            raise DataError(f"'{path}': cues is a list of names, categories an object of lists, each name once.")
    return Vocabulary(tuple(cues), {str(group): tuple(names) for group, names in groups.items()})


def parsed(text: bytes, where: str) -> Any:
    """Parse JSON from UTF-8 bytes.

    Raises:
        DataError: says where and why it is none.
    """
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8 text: save it as UTF-8.") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where} is no valid JSON: {str(error).rstrip('.')}.") from None


def numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line) of every line that is not empty."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                yield number, line


def record_of(line: bytes, vocabulary: Vocabulary) -> PictureRecord:
    """Read one line as a record.

    Raises:
        DataError: names every key that is wrong, and why.
    """
    row = parsed(line, "the line")
    problems = problems_of(row, vocabulary)
    if problems:
        raise DataError("; ".join(problems) + ".")
    values = {key: value for key, value in row.items() if value is not None}
    for key in REPEATED:
        if key in values:
            values[key] = sys.intern(values[key])
    if "cues" in values:
        values["cues"] = tuple(values["cues"])
    if "boxes" in values:
        values["boxes"] = tuple(_region(box, row.get("width"), row.get("height")) for box in values["boxes"])
    values.setdefault("source_id", values["id"])
    return PictureRecord(**values)


def row_of(record: PictureRecord) -> dict[str, Any]:
    """Convert a record to the object of its line; what is not annotated is left out."""
    row: dict[str, Any] = {}
    for key in KEYS:
        value = getattr(record, key)
        if value is None or (key == "derived" and not value) or (key == "scope" and value == "unknown"):
            continue
        if key == "boxes":
            value = [{"xyxy": list(box.xyxy)} | ({} if box.cues is None else {"cues": list(box.cues)}) for box in value]
        row[key] = list(value) if key == "cues" else value
    return row


def clipped(box: Sequence[float], width: int, height: int) -> Box | None:
    """Clip a box to the picture's edges; None where more than 2 px lie beyond them or nothing is left."""
    x0, y0, x1, y1 = box
    if min(x0, y0) < -SLACK or x1 > width + SLACK or y1 > height + SLACK:
        return None
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def problems_of(row: Any, vocabulary: Vocabulary) -> list[str]:
    """List what contradicts the schema in one parsed line, each a sentence without full stop; files are not opened."""
    if not isinstance(row, dict):
        return ["the line is no JSON object"]
    problems = [f"unknown key '{key}'{_hint(key, KEYS)}" for key in row if key not in KEYS]
    problems += [f"required key '{key}' is missing" for key in REQUIRED if row.get(key) is None]
    given = {key: value for key, value in row.items() if value is not None and key in KEYS}
    for key, value in given.items():
        if key in TEXTS and not (isinstance(value, str) and (value or key not in ("id", "image", "source_id"))):
            problems.append(f"'{key}' must be text, not {_shown(value)}")
        elif key in COUNTS and not (type(value) is int and value > 0):
            problems.append(f"'{key}' must be a whole number of pixels above 0, not {_shown(value)}")
        elif key in CHOICES and value not in CHOICES[key]:
            problems.append(
                f"'{key}' must be {', '.join(CHOICES[key][:-1])} or {CHOICES[key][-1]}, not {_shown(value)}"
            )
    if "label" in given and (type(given["label"]) is not int or given["label"] not in (0, 1, 2)):
        problems.append(f"'label' must be 0 (real), 1 (edited) or 2 (synthetic), not {_shown(given['label'])}")
    if not isinstance(given.get("derived", False), bool):
        problems.append(f"'derived' must be true or false, not {_shown(given['derived'])}")
    known = [name for names in vocabulary.categories.values() for name in names]
    if isinstance(given.get("category"), str) and given["category"] not in known:
        problems.append(f"category '{given['category']}' is not in the vocabulary{_hint(given['category'], known)}")
    problems += _cue_problems(given.get("cues", []), vocabulary)
    problems += _box_problems(given.get("boxes", []), given, vocabulary)
    return problems


def _box_problems(boxes: Any, row: dict[str, Any], vocabulary: Vocabulary) -> list[str]:
    if not isinstance(boxes, list):
        return [f"'boxes' must be a list, not {_shown(boxes)}"]
    problems, sides = [], [row.get(key) for key in COUNTS]
    for number, box in enumerate(boxes):
        if not isinstance(box, dict) or "xyxy" not in box or set(box) - {"xyxy", "cues"}:
            problems.append(f"boxes[{number}] must be an object with the key xyxy and perhaps cues, not {_shown(box)}")
            continue
        xyxy = box["xyxy"]
        if not (isinstance(xyxy, list) and len(xyxy) == 4 and all(_is_number(value) for value in xyxy)):
            problems.append(f"boxes[{number}].xyxy must be four numbers, not {_shown(xyxy)}")
        elif not (xyxy[0] < xyxy[2] and xyxy[1] < xyxy[3] and min(xyxy[:2]) >= -SLACK):
            problems.append(f"boxes[{number}] {xyxy} must have 0 <= x1 < x2 and 0 <= y1 < y2")
        elif all(type(side) is int and side > 0 for side in sides) and clipped(xyxy, *sides) is None:
            problems.append(f"boxes[{number}] {xyxy} lies beyond the picture of {sides[0]}x{sides[1]}")
        if box.get("cues") is not None:
            problems += [f"boxes[{number}]: {problem}" for problem in _cue_problems(box["cues"], vocabulary)]
    return problems


def _cue_problems(cues: Any, vocabulary: Vocabulary) -> list[str]:
    if not isinstance(cues, list) or not all(isinstance(cue, str) for cue in cues):
        return [f"'cues' must be a list of names, not {_shown(cues)}"]
    unknown = [cue for cue in cues if cue not in vocabulary.cues]
    hint = _hint(unknown[0], vocabulary.cues) if unknown else ""
    return [f"cues {listed(unknown)} not in the vocabulary{hint}"] if unknown else []


def _region(box: dict[str, Any], width: int | None, height: int | None) -> Region:
    x0, y0, x1, y1 = box["xyxy"]
    inside = clipped((x0, y0, x1, y1), width or sys.maxsize, height or sys.maxsize)
    cues = box.get("cues")
    return Region(inside or (x0, y0, x1, y1), None if cues is None else tuple(cues))


def _are_names(names: Any) -> bool:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        return False
    return len(set(names)) == len(names)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9  # NaN and infinities, which json reads, are refused too


def _hint(name: str, known: Sequence[str]) -> str:
    meant = near_miss(name, known)
    return f" ({meant.strip().replace('Did', 'did')})" if meant else ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
