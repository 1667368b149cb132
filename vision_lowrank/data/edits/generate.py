"""Make a data set of edited photographs: ``train.jsonl``, ``val.jsonl``, ``test.jsonl`` and the pictures they name.

::

    real/ID.jpg                 a photograph, or a square of one
    edited/ID.EDITOR-N.jpg      an edit of it
    masks/ID.EDITOR-N.png       where: white on black
    schema.json, manifest.json  vocabularies; options, versions, counts, what was left out, SHA-256 of all files

What is drawn for a picture depends on (seed, source, kind, number) only: other kinds, other photographs and the number
of edits leave it as it is. Only the donor depends on the other sources: those of a split lie on a ring by the hash of
their names, and the first of another photograph after the edit's own hash is taken, so a new photograph changes few
edits. A donor is a *real* picture as it was written, of the same split: no pixel of a test photograph is in train.

No format shortcut: a real picture and its edits have one size, JPEG quality and chroma subsampling, drawn per source,
and were encoded once.

Every finished picture is one line of ``progress.jsonl``: an interrupted run goes on after the last of them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
from bisect import bisect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ...errors import DataError
from ...files import write_text
from ...version import __version__
from ..manipulation.base import EDITED, REAL, PictureRecord, Region
from ..manipulation.schema import write_schema
from .base import VOCABULARY, Donor, Edit, Pixels, opencv
from .dividing import SPLITS, divide, number_of
from .journal import Journal
from .kinds import KINDS
from .objects import Objects, objects_by_split
from .options import EditOptions
from .photographs import Photograph, Photographs, find_photographs, is_blank, sources_of

MANIFEST = "manifest.json"
SUBSAMPLINGS = (0, 2)  # Pillow's names of 4:4:4 and 4:2:0


@dataclass(frozen=True)
class EditJob:
    """One edit to make: the `number`-th of a kind of a source."""

    source: Photograph
    kind: str
    number: int

    @property
    def id(self) -> str:
        """Of the picture."""
        return f"{self.source.id}.{self.kind}-{self.number}"


def make_edits(options: EditOptions, out: Path) -> dict[str, Any]:
    """Make the data set, go on with it, or find it finished.

    Args:
        options: what to make.
        out: its folder.

    Returns:
        The manifest.

    Raises:
        DataError: `out` holds a data set made with other options (names them) or something else; photographs or
            objects are missing.
        UserError: a kind needs OpenCV, and it is not installed.
    """
    manifest = _begun(out, options)
    if manifest is not None and manifest["complete"]:
        return manifest
    if any(KINDS[kind].opencv for kind in options.kinds):
        opencv()
    photos = find_photographs(options.photos)
    begun = {"options": options.model_dump(mode="json"), "versions": _versions(), "photographs": photos.digest}
    if manifest is not None:
        _check_same(out, manifest, begun)
    write_text(out / MANIFEST, json.dumps(begun | {"complete": False}, indent=1) + "\n")
    with Journal(out).opened() as journal:
        maker = _Maker(options, out, photos, journal)
        maker.reals()
        maker.edits()
    manifest = begun | _finish(out, journal, photos)
    write_text(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    journal.path.unlink()
    return manifest


def plan(options: EditOptions, source: Photograph) -> list[EditJob]:
    """Plan the edits of a source: `per_photo` of the seen kinds and, in the test split, as many of the unseen ones.

    Every kind comes once before one comes twice.
    """

    def drawn(kinds: tuple[str, ...]) -> list[EditJob]:
        numbers = range(-(-options.per_photo // max(1, len(kinds))))
        every = [EditJob(source, kind, number) for number in numbers for kind in kinds]
        order = sorted(every, key=lambda task: (task.number, number_of(options.seed, task.id, "order")))
        return order[: options.per_photo]

    return drawn(options.seen) + (drawn(options.unseen_kinds) if source.split == "test" else [])


class _Maker:
    """Writes the pictures of one data set."""

    def __init__(self, options: EditOptions, out: Path, photos: Photographs, journal: Journal) -> None:
        self.options, self.out, self.photos, self.journal = options, out, photos, journal
        self.objects: dict[str, Objects] = {}
        if any(KINDS[kind].objects for kind in options.kinds) or options.objects is not None:
            self.objects = objects_by_split(options.objects, options.fractions)
        self.sources = sources_of(
            photos, divide(photos.sizes, options.fractions), options.pixels, options.squares, options.seed
        )
        if not self.sources:
            raise DataError(f"no photograph in '{options.photos}' is {options.pixels} px large: lower the size.")

    def reals(self) -> None:
        """Make the real pictures; sources that are damaged or show nothing are left out."""
        for source in _bar("photographs", [each for each in self.sources if each.id not in self.journal]):
            try:
                pixels = self.photos.pixels(source, self.options.pixels)
            except DataError as error:
                self.journal.skip(source.id, str(error))
                continue
            if is_blank(pixels):
                self.journal.skip(source.id, "blank")
                continue
            name = f"real/{source.id}.jpg"
            self._write(name, self._jpeg(source, pixels))
            height, width = pixels.shape[:2]
            self.journal.add(
                PictureRecord(
                    source.id, name, REAL, source.id, group=source.photo, scope="local",
                    width=width, height=height, boxes=(), cues=(), annotator="generator", split=source.split,
                )
            )  # fmt: skip

    def edits(self) -> None:
        """Make the edited pictures of all sources that have a real one."""
        good = [source for source in self.sources if source.id in self.journal.records]
        rings = {split: _Ring([each for each in good if each.split == split]) for split in SPLITS}
        tasks = [task for source in good for task in plan(self.options, source) if task.id not in self.journal]
        pixels, loaded = None, None
        for task in _bar("edits", tasks):
            if loaded != task.source:
                pixels, loaded = self.photos.pixels(task.source, self.options.pixels), task.source
            assert pixels is not None
            seed = number_of(self.options.seed, task.id)
            donor = rings[task.source.split].after(seed, task.source.photo)
            supply = Donor(
                None if donor is None else np.asarray(Image.open(self.out / f"real/{donor.id}.jpg")),
                self.objects.get(task.source.split),
            )
            edit = KINDS[task.kind].edit(pixels, supply, np.random.default_rng(seed))
            if edit is None:
                self.journal.skip(task.id, f"{task.kind}: nothing that shows, or nothing to paste")
            else:
                self._keep(task, edit)

    def _keep(self, task: EditJob, edit: Edit) -> None:
        """Write an edit and note it."""
        source, mask = task.source, io.BytesIO()
        Image.fromarray(edit.mask.astype(np.uint8) * 255).convert("1").save(mask, "PNG")
        image, mask_name = f"edited/{task.id}.jpg", f"masks/{task.id}.png"
        self._write(mask_name, mask.getvalue())
        self._write(image, self._jpeg(source, edit.image))
        height, width = edit.mask.shape
        self.journal.add(
            PictureRecord(
                task.id, image, EDITED, source.id, group=source.photo, source_image=f"real/{source.id}.jpg",
                editor=task.kind, editor_access="open", category=edit.category, prompt=edit.prompt, scope="local",
                width=width, height=height, boxes=tuple(Region(box, edit.cues) for box in edit.boxes), mask=mask_name,
                cues=edit.cues, explanation=edit.explanation, annotator="generator", derived=True, split=source.split,
            )
        )  # fmt: skip

    def _jpeg(self, source: Photograph, pixels: Pixels) -> bytes:
        rng = np.random.default_rng(number_of(self.options.seed, source.id, "jpeg"))
        low, high = self.options.quality
        quality, subsampling = int(rng.integers(low, high + 1)), int(rng.choice(SUBSAMPLINGS))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
        return buffer.getvalue()

    def _write(self, name: str, content: bytes) -> None:
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        temporary.write_bytes(content)
        os.replace(temporary, path)


class _Ring:
    """The sources of a split in the order of their names' hashes."""

    def __init__(self, sources: list[Photograph]) -> None:
        self._sources = sorted(sources, key=lambda source: number_of(source.id))
        self._hashes = [number_of(source.id) for source in self._sources]

    def after(self, seed: int, photo: str) -> Photograph | None:
        """Find the first of another photograph at or after a hash; None where there is none."""
        start = bisect(self._hashes, seed)
        ordered = chain(self._sources[start:], self._sources[:start])
        return next((source for source in ordered if source.photo != photo), None)


def _begun(out: Path, options: EditOptions) -> dict | None:
    """Read the manifest of what is in the folder; None where it is empty or missing."""
    path = out / MANIFEST
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"'{out}' exists and holds no data set of edits: give a new or empty folder.")
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        _check_same(out, manifest, {"options": options.model_dump(mode="json")})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"'{path}' is damaged: remove the folder and make the data set anew.") from None
    return manifest


def _check_same(out: Path, manifest: dict, wanted: dict) -> None:
    """Refuse another data set than the one that was begun."""
    differences = []
    for key, value in wanted.items():
        there = manifest[key]
        if not isinstance(value, dict):
            value, there = {key: value}, {key: there}
        differences += [f"{k} {there.get(k)!r} there, {v!r} now" for k, v in value.items() if there.get(k) != v]
    if differences:
        raise DataError(f"'{out}' holds a data set made otherwise: {'; '.join(differences)}. Give another folder.")


def _finish(out: Path, journal: Journal, photos: Photographs) -> dict[str, Any]:
    """Write the splits' files; counts and hashes for the manifest."""
    records = [journal.records[name] for name in sorted(journal.records)]
    counts = {}
    for split in SPLITS:
        part = [record for record in records if record.split == split]
        write_schema(out / f"{split}.jsonl", part, VOCABULARY)
        edited = Counter(record.editor for record in part if record.editor is not None)
        counts[split] = {"real": len(part) - edited.total(), "edited": dict(sorted(edited.items()))}
    digest, names = hashlib.sha256(), [name for record in records for name in (record.image, record.mask) if name]
    for name in sorted([*names, *(f"{split}.jsonl" for split in SPLITS)]):
        digest.update(f"{name}\n{hashlib.sha256((out / name).read_bytes()).hexdigest()}\n".encode())
    left_out = {"photographs": photos.skipped, "pictures": dict(sorted(journal.skipped.items()))}
    return {"counts": counts, "left_out": left_out, "sha256": digest.hexdigest(), "complete": True}


def _versions() -> dict[str, str]:
    try:
        cv2 = opencv().__version__
    except Exception:
        cv2 = "none"
    return {
        "vision-lowrank": __version__, "python": platform.python_version(), "numpy": np.__version__,
        "pillow": PIL.__version__, "opencv": cv2,
    }  # fmt: skip


def _bar(name: str, items: list) -> Iterator:
    """Yield `items` under a bar with their rate, where stderr is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn(show_speed=True))
    progress = Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    )
    with progress:
        yield from progress.track(items, description=name)
