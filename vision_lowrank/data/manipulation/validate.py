"""Everything that can be wrong with a data set in the schema, collected in one pass.

Lines: bad JSON, unknown, missing and wrong keys, cues and categories outside the vocabulary, boxes beyond the picture.
Files: missing, truncated or no picture; a picture's stated size is not its size; a mask's size is not the picture's,
also where only the EXIF orientation makes the difference. Labels: a real picture with a mask that is not black, or with
boxes or cues; an edited one with a black mask; a mask that can be read in several ways. The set: ids that come twice,
edits whose original is not there, a source or group in two splits or a source in two groups, a real picture whose
source is not itself.

Pictures are read as training reads them: the orientation tag is applied, to masks too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..images import open_picture, read_image
from ..split_names import split_of
from .base import EDITED, REAL, PictureRecord, Vocabulary
from .masks import AmbiguousMask, read_mask
from .schema import clipped, numbered, parsed, problems_of, read_vocabulary, record_of

READERS, BLOCK = 8, 512
ORIENTATION = 0x0112  # EXIF tag; 1 = upright


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: the JSON Lines file.
        line: from 1.
        id: of the record; empty where the line cannot be read.
        kind: ``line``, ``unreadable``, ``size``, ``box``, ``label``, ``duplicate``, ``twin`` or ``split``.
        message: a sentence that names the files.
    """

    file: str
    line: int
    id: str
    kind: str
    message: str


@dataclass
class Validation:
    """What was found.

    Attributes:
        rows: number of records looked at.
        labels: records by label.
        annotated: records by what is annotated, such as boxes.
        problems: in order of files and lines.
    """

    rows: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    annotated: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        problems = [asdict(problem) for problem in self.problems]
        labels = {str(label): count for label, count in sorted(self.labels.items())}
        return {"rows": self.rows, "labels": labels, "annotated": dict(self.annotated), "problems": problems}


@dataclass(frozen=True)
class _Row:
    """A record and where it stands."""

    file: str
    line: int
    record: PictureRecord
    root: Path

    def problem(self, kind: str, message: str) -> Problem:
        return Problem(self.file, self.line, self.record.id, kind, message)


def validate(path: Path, watch: Callable[[Iterable[int]], Iterable[int]] = iter, files_too: bool = True) -> Validation:
    """Look at a JSON Lines file, or at all those of a folder as one data set.

    Args:
        path: the file or folder; ``train.jsonl``, ``val.jsonl`` and ``test.jsonl`` of a folder are its splits.
        watch: wraps an iterable that gives one number per record, to show progress.
        files_too: open the pictures and masks.

    Raises:
        DataError: there is no such file, or the vocabularies cannot be read.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"'{path}' is no JSON Lines file and no folder with any: check the path.")
    vocabulary = read_vocabulary(files[0].parent)
    found, whole = Validation(), _WholeSet(split_of_file=path.is_dir())
    rows = _rows(files, vocabulary, found.problems)
    progress = iter(watch(range(sum(1 for file in files for _ in numbered(file)))))
    with ThreadPoolExecutor(READERS) as pool:
        # In blocks: a task for each of 450,000 rows at once would fill the memory.
        while block := list(islice(rows, BLOCK)):
            checks = pool.map(_file_problems, block) if files_too else ([] for _ in block)
            for row, problems in zip(block, checks, strict=True):
                next(progress, None)
                _count(found, row.record)
                found.problems += _label_problems(row) + problems + whole.add(row)
    list(progress)
    found.problems += whole.missing_twins()
    found.problems.sort(key=lambda problem: (problem.file, problem.line))
    return found


def _rows(files: list[Path], vocabulary: Vocabulary, problems: list[Problem]) -> Iterator[_Row]:
    """Yield the records of all lines that are right; what is wrong with the others goes to `problems`."""
    for file in files:
        for line, text in numbered(file):
            name = ""
            try:
                row = parsed(text, "the line")
                name = str(row.get("id", "")) if isinstance(row, dict) else ""
                wrong = problems_of(row, vocabulary)
            except DataError as error:
                wrong = [str(error).rstrip(".")]
            problems += [Problem(str(file), line, name, "line", f"{each}.") for each in wrong]
            if not wrong:
                yield _Row(str(file), line, record_of(text, vocabulary), file.parent)


def _count(found: Validation, record: PictureRecord) -> None:
    found.rows += 1
    found.labels[record.label] += 1
    for key in ("boxes", "mask", "cues", "explanation", "category", "editor"):
        found.annotated[key] += getattr(record, key) is not None


def _label_problems(row: _Row) -> list[Problem]:
    record = row.record
    if record.label != REAL:
        return []
    problems = []
    for key in ("boxes", "cues"):
        if getattr(record, key):
            problems.append(row.problem("label", f"'{record.image}' is real (label 0) but has {key}: label it 1."))
    if record.source_id != record.id:
        message = (
            f"'{record.image}' is real, so its source_id must be its own id '{record.id}', not '{record.source_id}'"
        )
        problems.append(row.problem("twin", f"{message}; what several originals share is their `group`."))
    return problems


def _file_problems(row: _Row) -> list[Problem]:
    """List what is wrong with the picture and the mask of one record."""
    record, problems = row.record, []
    if record.source_image is not None and not (row.root / record.source_image).is_file():
        problems.append(row.problem("unreadable", f"original '{record.source_image}' does not exist."))
    try:
        size = read_image(row.root / record.image, record.image).size
    except DataError as error:
        return [*problems, row.problem("unreadable", str(error))]
    stated = (record.width or size[0], record.height or size[1])
    if stated != size:
        hint = _orientation_hint(row.root / record.image, stated)
        problems.append(row.problem("size", f"'{record.image}' is {_x(size)}, not {_x(stated)} as stated{hint}."))
    else:
        for box in record.boxes or ():
            if clipped(box.xyxy, *size) is None:
                problems.append(row.problem("box", f"box {list(box.xyxy)} lies beyond '{record.image}' of {_x(size)}."))
    return problems + (_mask_problems(row, record.mask, size) if record.mask is not None else [])


def _mask_problems(row: _Row, mask: str, size: tuple[int, int]) -> list[Problem]:
    record = row.record
    try:
        edited = read_mask(row.root / mask, mask)
    except AmbiguousMask as error:
        return [row.problem("label", str(error))]
    except DataError as error:
        return [row.problem("unreadable", str(error))]
    problems, found = [], edited.shape[::-1]
    if found != size:
        hint = _orientation_hint(row.root / record.image, found) or ": store a mask of the picture's size"
        problems.append(row.problem("size", f"mask '{mask}' is {_x(found)}, '{record.image}' is {_x(size)}{hint}."))
    if record.label == REAL and edited.any():
        problems.append(row.problem("label", f"'{record.image}' is real (label 0) but mask '{mask}' is not black."))
    if record.label == EDITED and not edited.any():
        problems.append(row.problem("label", f"'{record.image}' is edited (label 1) but mask '{mask}' is black."))
    return problems


def _orientation_hint(image: Path, size: tuple[int, ...]) -> str:
    """Return a hint where `size` is the picture's before its EXIF orientation is applied; empty otherwise."""
    with open_picture(image) as picture:
        turned = picture.getexif().get(ORIENTATION, 1) != 1
        if turned and picture.size == tuple(size):
            return (
                ": it fits the stored pixels, but the EXIF orientation turns the picture; turn the mask and the numbers"
            )
    return ""


def _x(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"


class _WholeSet:
    """What only shows when all records are seen."""

    def __init__(self, split_of_file: bool) -> None:
        self._split_of_file = split_of_file
        self._ids: dict[str, str] = {}
        self._splits: dict[tuple[str, str], str] = {}
        self._groups: dict[str, str | None] = {}
        self._reals: set[str] = set()
        self._waiting: dict[str, list[tuple[str, int, str, str]]] = {}

    def add(self, row: _Row) -> list[Problem]:
        """Take one record in; what contradicts those before."""
        record, problems = row.record, []
        first = self._ids.setdefault(record.id, f"'{row.file}' line {row.line}")
        if first != f"'{row.file}' line {row.line}":
            problems.append(row.problem("duplicate", f"id '{record.id}' is that of {first} too: ids must be unique."))
        split = self._split(row)
        if record.split is not None and split != record.split:
            problems.append(
                row.problem("split", f"'{record.id}' says split '{record.split}' in the file of '{split}'.")
            )
        for kind, key in (("source", record.source_id), ("group", record.group)):
            if split and key is not None and self._splits.setdefault((kind, key), split) != split:
                message = f"{kind} '{key}' is in two splits, {self._splits[kind, key]} and {split} ('{record.image}')"
                problems.append(row.problem("split", f"{message}: keep twins in one."))
        if self._groups.setdefault(record.source_id, record.group) != record.group:
            message = f"source '{record.source_id}' has pictures with different groups ('{record.image}')"
            problems.append(row.problem("split", f"{message}: give twins the same."))
        if record.label == REAL:
            self._reals.add(record.source_id)
            self._waiting.pop(record.source_id, None)
        elif self._needs_twin(row) and record.source_id not in self._reals:
            self._waiting.setdefault(record.source_id, []).append((row.file, row.line, record.id, record.image))
        return problems

    def missing_twins(self) -> list[Problem]:
        """List edits whose originals never came."""
        return [
            Problem(file, line, name, "twin", f"'{image}' has source_id '{source}', but no real picture has that id.")
            for source, edits in self._waiting.items()
            for file, line, name, image in edits
        ]

    def _split(self, row: _Row) -> str | None:
        named = split_of(Path(row.file).stem) if self._split_of_file else None
        return named or row.record.split

    def _needs_twin(self, row: _Row) -> bool:
        """Check whether a picture is of another source than itself and has no original as a file in `source_image`."""
        record = row.record
        if record.source_id == record.id:
            return False
        return record.source_image is None or not (row.root / record.source_image).is_file()
