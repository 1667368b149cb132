"""The loop of a scan: files are read by threads while the model looks at the batch before.

N inputs give N rows, in order. Whatever is wrong with a file, or makes the model fail on it, becomes the ``error`` of
its row; so does an output file that cannot be written, unless no other could be either. What is in memory is two
batches, each of at most `batch` pictures and 64 million pixels (one larger picture is a batch of its own), and their
heat maps.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import PIXELS, batches, pixel_count
from ..errors import DataError, UserError
from ..metrics.calibration import Calibration
from ..tasks.manipulation.finding import Finding
from ..viz.overlay import heat_levels, overlay
from .journal import Journal, ScanRow
from .pictures import Photo, read_photo, sha256
from .predictor import EditModel
from .sources import InputFile, output_names

THUMBNAIL = 400
JOURNAL = "results.jsonl"
_THREADS = min(4, os.cpu_count() or 1)
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # what holds for other files of the folder too


@dataclass(frozen=True)
class Options:
    """How to scan.

    Attributes:
        batch: most pictures the model looks at together.
        explain: let the model's language part explain.
        overlay: write each picture under its heat map and boxes, at its size.
        npy: write heat maps as float32 too.
        thumbnails: write small pictures and overlays for the page.
        resume: take the rows of the journal for pictures of the same bytes.
    """

    batch: int = 8
    explain: bool = False
    overlay: bool = False
    npy: bool = False
    thumbnails: bool = False
    resume: bool = False

    @property
    def wanted(self) -> list[str]:
        """Kinds of files that every row without an error must have."""
        return ["heatmap", *(name for name in ("overlay", "npy", "thumbnails") if getattr(self, name))]


@dataclass
class _Read:
    """A file after reading: a photo to look at, or the row it has already."""

    source: InputFile
    sha256: str | None = None
    photo: Photo | None = None
    row: ScanRow | None = None
    seconds: float = 0.0


def scan(
    sources: Sequence[InputFile],
    model: EditModel,
    calibration: Calibration,
    out: Path,
    header: Mapping[str, Any],
    options: Options,
) -> Generator[list[ScanRow], None, None]:
    """Look at all sources, a batch at a time; its rows are on disk when they are yielded.

    Args:
        sources: the inputs.
        model: what looks at them.
        calibration: the threshold to use.
        out: folder for the journal ``results.jsonl`` and ``heatmaps/``, ``overlays/`` and ``thumbnails/``.
        header: of the results, see :func:`make_header`.
        options: how.

    Yields:
        Rows of the next sources, in order. Stopping between batches leaves nothing half done.

    Raises:
        UserError: explanations were asked for and the model has none; the journal to go on with was made with other
            settings; or nothing can be written to `out`.
    """
    if options.explain and not model.explains:
        raise UserError("--explain: this model was trained without a language model that explains; leave it out.")
    waiting: list[Future[_Read]] = []
    heatmaps = {output_names(source.name)["heatmap"][0] for source in sources}
    try:
        for folder in {Path(name).parts[0] for kind in options.wanted for name in output_names("")[kind]}:
            (out / folder).mkdir(parents=True, exist_ok=True)
        with Journal(out / JOURNAL, header, options.resume, heatmaps) as journal, ThreadPoolExecutor(_THREADS) as pool:
            batched = batches(sources, options.batch, lambda source: pixel_count(source.path), PIXELS)
            for batch in chain(batched, [[]]):
                reading = [pool.submit(_read, source, journal, options.wanted, out) for source in batch]
                if waiting:
                    rows = _look([each.result() for each in waiting], model, calibration, out, options, pool)
                    journal.append(rows)
                    yield rows
                waiting = reading
    except OSError as error:
        raise UserError(
            f"'{error.filename or out}' cannot be written: {error.strerror or error}. The rows so far are in "
            f"'{out / JOURNAL}'; go on with --resume."
        ) from None


def _read(source: InputFile, journal: Journal, wanted: Collection[str], out: Path) -> _Read:
    start = time.perf_counter()
    path = str(source.path)
    if source.problem:
        return _Read(source, row=ScanRow(path, error=source.problem))
    digest = sha256(source.path)
    done = journal.reusable(output_names(source.name), digest, wanted, out)
    if done is not None:
        return _Read(source, digest, row=replace(done, path=path))
    try:
        photo = read_photo(source.path)
    except DataError as error:
        return _Read(source, digest, row=ScanRow(path, digest, error=str(error)))
    return _Read(source, digest, photo, seconds=time.perf_counter() - start)


def _look(
    reads: Sequence[_Read],
    model: EditModel,
    calibration: Calibration,
    out: Path,
    options: Options,
    pool: ThreadPoolExecutor,
) -> list[ScanRow]:
    """Return the rows of a batch: the model on what has none yet, then the files, several at a time."""
    photos = [(read, read.photo) for read in reads if read.photo is not None]
    start = time.perf_counter()
    findings = _predict([photo.image for _, photo in photos], model, calibration, options.explain)
    share = (time.perf_counter() - start) / max(1, len(photos))

    def finish(each: tuple[tuple[_Read, Photo], Finding | str]) -> None:
        (read, photo), finding = each
        read.row = _row(read, photo, finding, out, options, share)

    list(pool.map(finish, zip(photos, findings, strict=True)))
    return [read.row for read in reads if read.row is not None]


def _predict(
    images: list[Image.Image], model: EditModel, calibration: Calibration, explain: bool
) -> list[Finding | str]:
    """Return a finding for each image, or why there is none: if a batch fails, its pictures are tried one by one."""
    if not images:
        return []
    try:
        findings = model.predict_batch(images, calibration=calibration, explain=explain)
        return [each if math.isfinite(each.probability) else "the model gave no number." for each in findings]
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, DataError):
            raise  # about what was asked for, not about a picture
        if len(images) == 1:
            return [f"the model failed on this picture: {(str(error).splitlines() or [type(error).__name__])[0]}"]
    return [outcome for image in images for outcome in _predict([image], model, calibration, explain)]


def _row(read: _Read, photo: Photo, finding: Finding | str, out: Path, options: Options, share: float) -> ScanRow:
    facts = ScanRow(
        path=str(read.source.path),
        sha256=read.sha256,
        width=photo.image.width,
        height=photo.image.height,
        format=photo.format,
        seconds=round(read.seconds + share, 4),
        warnings=photo.warnings,
    )
    if isinstance(finding, str):
        return replace(facts, error=finding)
    try:
        files = _write_files(read.source.name, photo.image, finding, out, options)
    except OSError as error:
        if error.errno in _HOPELESS:
            raise
        return replace(facts, error=f"'{error.filename or out}' cannot be written: {error.strerror or error}.")
    row = finding.to_row()
    return replace(facts, **row | {"boxes": tuple(row["boxes"]), "cues": tuple(row["cues"])}, **files)


def _write_files(name: str, image: Image.Image, finding: Finding, out: Path, options: Options) -> dict[str, Any]:
    """Write what was asked for; return kind of file -> path below `out`."""
    names = output_names(name)
    heat = heat_levels(finding.heatmap)
    files: dict[str, Any] = {"heatmap": _save(Image.fromarray(heat), out, names["heatmap"][0])}
    if options.npy:
        files["npy"] = names["npy"][0]
        np.save(out / files["npy"], np.asarray(finding.heatmap, dtype=np.float32), allow_pickle=False)
    legend = f"{finding.verdict}, likelihood {100 * finding.probability:.0f}%"
    if options.overlay:
        files["overlay"] = _save(overlay(image, finding.heatmap, finding.boxes, legend), out, names["overlay"][0])
    if options.thumbnails:
        files["thumbnails"] = _write_thumbnails(names["thumbnails"], image, finding, out)
    return files


def _write_thumbnails(names: Sequence[str], image: Image.Image, finding: Finding, out: Path) -> tuple[str, str]:
    """Write the picture and its overlay, drawn at the small size so that lines stay visible.

    The page states the number.
    """
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    heat = Image.fromarray(heat_levels(finding.heatmap)).resize(small.size, Image.Resampling.BILINEAR)
    shown = overlay(small, np.asarray(heat, dtype=np.float32) / 255, finding.boxes.resize(small.size), "")
    return _save(small, out, names[0]), _save(shown, out, names[1])


def _save(picture: Image.Image, out: Path, name: str) -> str:
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **({"quality": 75} if path.suffix == ".jpg" else {"compress_level": 1}))
    return name
