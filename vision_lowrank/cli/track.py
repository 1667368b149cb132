"""``vision-lowrank track``: follow targets through a video, and write where they were."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..data.frames import FORMATS
from ..data.tracking.results import ResultFolder, form_of
from ..data.videos import FrameSource, VideoWriter, open_frames
from ..errors import UserError, near_miss
from ..files import write_text
from ..viz.tracked import Strip, draw_tracks, write_track_page
from .tracker import load_tracker, tracker_folder

if TYPE_CHECKING:
    from ..inference.tracks import TrackRow
    from ..tasks.tracking.model import TrackingModel


@dataclass(frozen=True)
class TrackOptions:
    """What the command was given beside the source.

    Attributes:
        boxes: of the targets in the first frame, as text, four numbers each.
        boxes_file: a file of such boxes, one a line.
        fmt: what the numbers are: ``xywh``, ``xyxy``, ``cxcywh``.
        model: artefact folder of a tracker; None = the shipped one.
        out: folder for the results; None = ``track-NAME``.
        form: of the text files.
        save_video: write the video with its boxes.
        show: open a window.
        hide_below: boxes of a lower score are not drawn.
        resume: go on with what is in the folder.
        device: ``auto`` or a device of torch's.
        trust: as for ``load_model``.
    """

    boxes: Sequence[str]
    boxes_file: Path | None
    fmt: str
    model: Path | None
    out: Path | None
    form: str
    save_video: bool
    show: bool
    hide_below: float
    resume: bool
    device: str
    trust: bool


def track_command(source: str, options: TrackOptions) -> None:
    """Track, write the results, say where they are.

    Raises:
        UserError: an option, the source or the model cannot be used.
        typer.Exit: 130 if it was interrupted; what was done is written.
    """
    form_of(options.form)
    if options.fmt not in FORMATS:
        raise UserError(f"--fmt '{options.fmt}': give {' or '.join(FORMATS)}.{near_miss(options.fmt, FORMATS)}")
    boxes = [parse_box(text, "--box", options.fmt) for text in options.boxes]
    if options.boxes_file is not None:
        boxes += read_boxes(options.boxes_file, options.fmt)
    if not boxes and not options.show:
        raise UserError(f"no target: give --box {FORMATS[options.fmt]}; or draw it with --show.")
    frames = open_frames(source)
    folder = tracker_folder(options.model)
    with ExitStack() as open_things:
        window = None
        if options.show:
            from ..viz.window import Window

            window = Window(frames.name)
            open_things.callback(window.close)
            boxes = boxes or [list(window.choose_box(frames.peek()))]
        _run(frames, boxes, folder, options, window, open_things)


def parse_box(text: str, where: str, fmt: str) -> list[float]:
    """Read four numbers, which are what `fmt` says, with commas or blanks between them.

    Raises:
        UserError: they are none; the message says how to give them.
    """
    parts = text.replace(",", " ").split()
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise UserError(f"{where} '{text}' is not four numbers: give it as {FORMATS[fmt]}.")
    return numbers


def read_boxes(path: Path, fmt: str) -> list[list[float]]:
    """Read a box a line; empty lines and those that begin with # are left out.

    Raises:
        UserError: the file is missing, or a line has no four numbers.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--boxes '{path}' cannot be read: {error}.") from None
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not kept:
        raise UserError(f"--boxes '{path}' has no box: give one a line, {FORMATS[fmt]}.")
    return [parse_box(line, f"--boxes '{path}', line {number}:", fmt) for number, line in kept]


def _run(
    frames: FrameSource,
    boxes: list[list[float]],
    folder: Path,
    options: TrackOptions,
    window: Any,
    open_things: ExitStack,
) -> None:
    model = load_tracker(folder, options.device, options.trust)
    from ..inference.tracks import TrackJournal, read_journal  # torch, only now

    out = options.out or Path(f"track-{Path(frames.name).stem.replace(' ', '-')}")
    header = {"source": frames.name, "boxes": boxes, "format": options.fmt, "model": model.identity}
    done = read_journal(out, header) if options.resume else []
    rows: list[TrackRow] = []
    strip, stopped = Strip(hide_below=options.hide_below), False
    writer = None
    with TrackJournal(out, header, done) as journal:
        try:
            for frame, row in _watched(frames, boxes, model, options.fmt, done):
                rows.append(row)
                if row.frame >= len(done):
                    journal.add(row)
                strip.add(row.frame, frame, row.boxes, row.scores)
                if not (options.save_video or window):
                    continue
                drawn = draw_tracks(frame, row.boxes, row.scores, options.hide_below)
                if options.save_video:
                    writer = writer or open_things.enter_context(VideoWriter(_video(out), frames.rate))
                    writer.write(drawn)
                if window and window.show(drawn):
                    break
        except KeyboardInterrupt:
            stopped = True
    _write(out, frames, rows, options, strip, header)
    if frames.problem:
        print(f"note: {frames.problem}", file=sys.stderr)
    if stopped:
        print(f"interrupted after {len(rows):,} frames, which are written. Go on with --resume.", file=sys.stderr)
        raise typer.Exit(130)


def _video(out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    return out / "track.mp4"


def _watched(
    frames: FrameSource, boxes: list[list[float]], model: TrackingModel, fmt: str, done: Sequence[TrackRow]
) -> Iterator[tuple[np.ndarray, TrackRow]]:
    """Follow with a progress bar that says how many frames a second are tracked."""
    from ..inference.tracks import follow

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.fields[shown]}"),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        shown = f"{frames.count:,}" if frames.count else "?"
        bar = progress.add_task(f"track {frames.name}", total=frames.count, shown=shown, rate="")
        spent = 0.0
        for frame, row in follow(model, frames, boxes, fmt, done):
            spent += row.seconds
            progress.update(bar, advance=1, rate=f"{(row.frame + 1) / spent:.1f} frames/s")
            yield frame, row


def _write(
    out: Path,
    frames: FrameSource,
    rows: Sequence[TrackRow],
    options: TrackOptions,
    strip: Strip,
    header: dict[str, Any],
) -> None:
    """Write text, JSON, CSV and the page, and say where they are."""
    if not rows:
        return
    boxes, scores = (np.stack([getattr(row, name) for row in rows]) for name in ("boxes", "scores"))
    seconds = np.array([row.seconds for row in rows])
    texts = ResultFolder(out / "boxes", form_of(options.form))
    for target in range(boxes.shape[1]):
        texts.write(f"target-{target + 1}", boxes[:, target], seconds)
    rate = (len(rows) - 1) / seconds[1:].sum() if len(rows) > 1 else 0.0
    record = header | {"frames_per_second": round(rate, 2), "problem": frames.problem}
    record |= {"frames": [row.to_dict() for row in rows]}
    write_text(out / "track.json", json.dumps(record) + "\n")
    with open(out / "track.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["frame", "target", "left", "top", "width", "height", "score"])
        for row in rows:
            for target, (box, score) in enumerate(zip(row.boxes.tolist(), row.scores.tolist(), strict=True), 1):
                table.writerow([row.frame, target, *(round(value, 2) for value in box), round(score, 4)])
    count = boxes.shape[1]
    facts = {
        "source": frames.name,
        "first boxes": "; ".join(",".join(f"{value:g}" for value in box) for box in header["boxes"]),
        "tracker": header["model"],
        "speed": f"{rate:.1f} frames a second, reading and drawing left out",
    }
    about = {
        "title": f"Tracking in {frames.name}",
        "lead": f"{count} target{'s' * (count > 1)} followed through {len(rows):,} frames.",
        "facts": facts,
        "notes": [frames.problem] if frames.problem else [],
    }
    page = write_track_page(out / "track.html", about, scores, strip)
    print(f"{len(rows):,} frames, {count} target{'s' * (count > 1)}, {rate:.1f} frames/s")
    for path in (
        page,
        out / "track.json",
        out / "track.csv",
        out / "boxes",
        *([out / "track.mp4"] * options.save_video),
    ):
        print(f"  {path}")
