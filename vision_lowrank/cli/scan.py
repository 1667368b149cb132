"""``vision-lowrank scan``: look for edits in any pictures, and write what was found."""

from __future__ import annotations

import shlex
import sys
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..data.find_pictures import said
from ..errors import UserError, near_miss
from ..inference.journal import ScanRow
from ..inference.predictor import EditModel, Threshold
from ..inference.sources import find_files
from ..inference.tables import write_csv, write_json
from ..paths import shipped
from ..tasks.about import read_about
from .imports import without_collection
from .output import plain
from .path_lists import read_list, shorten
from .tables import print_table

if TYPE_CHECKING:
    import torch

FAIL_ON = {"edited": ("edited",), "uncertain": ("edited", "uncertain")}
_LISTED = 20  # rows shown on the terminal


def scan_command(
    paths: list[Path],
    model: Path | None,
    out: Path,
    recursive: bool,
    batch: int,
    device: str,
    threshold: str,
    overlay: bool,
    explain: bool,
    json: bool,
    csv: bool,
    html: bool,
    npy: bool,
    resume: bool,
    fail_on: str | None,
    trust: bool = False,
    listed: Path | None = None,
) -> None:
    """Scan, write the results asked for (all three where none is), say what was found; see ``main.py`` for the options.

    Raises:
        UserError: an option, a path or the model cannot be used, or the results cannot be written.
        typer.Exit: 2 if `fail_on` was found; 1 if it was asked for and a file gave no answer, or none did; 130 if
            the scan was interrupted.
    """
    if fail_on is not None and fail_on not in FAIL_ON:
        raise UserError(f"--fail-on '{fail_on}': give edited or uncertain.{near_miss(fail_on, FAIL_ON)}")
    asked = Threshold.parse(threshold)
    json, csv, html = (json, csv, html) if json or csv or html else (True, True, True)
    given = [*paths, *(read_list(listed) if listed else [])]
    found = find_files(given, recursive, leave_out=out)
    folder = model or shipped("data") / "manipulation_detector"
    read_about(folder)
    with without_collection():
        from ..inference.header import finished, make_header  # torch, only now
        from ..inference.run import Options, scan

    place = compute_device(device)
    looking = load_edit_model(folder, place, trust)
    _make_folder(out)
    if found.left_out:
        print(plain(said(found.left_out)), file=sys.stderr)
    calibration = asked.of(looking.calibration)
    header = make_header(
        looking,
        calibration,
        path=folder,
        explain=explain,
        device=str(place),
        command=shorten(_command(), paths, out),
        inputs=len(found.sources),
        others=found.others,
    )
    options = Options(batch=batch, explain=explain, overlay=overlay, npy=npy, thumbnails=html, resume=resume)
    start = time.perf_counter()
    rows = _watched(scan(found.sources, looking, calibration, out, header, options), len(found.sources))
    header = finished(header, rows, time.perf_counter() - start)
    files = _write(out, header, rows, json, csv, html)
    _say(header, rows, files)
    _exit(header, fail_on)


def load_edit_model(folder: Path, device: torch.device, trust: bool = False) -> EditModel:
    """Load the model in a folder, on `device`; `trust` is that of ``load_model``.

    Raises:
        UserError: it does not look for edits.
    """
    with without_collection():
        from ..tasks.saved import load_model

    model = load_model(folder, trust=trust)
    if not hasattr(model, "calibration"):
        raise UserError(f"{folder}: a model for {model.task} looks for no edits: use `vision-lowrank predict`.")
    return model.to(device)


def compute_device(name: str) -> torch.device:
    """Return the device called `name`.

    ``auto`` is the accelerator where there is one, else the CPU; any other name is what torch calls a device.

    Raises:
        UserError: there is no such device.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    there = [*([accelerator.type] if accelerator else []), "cpu"]
    count = torch.accelerator.device_count() if accelerator else 0
    if device is None or device.type not in there or (device.type != "cpu" and (device.index or 0) >= count):
        raise UserError(f"--device '{name}' is not here: give auto or one of {', '.join(there)}.")
    return device


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out '{out}' cannot be made: {error.strerror}.") from None


def _command() -> str:
    """Return what the user typed."""
    program = Path(sys.argv[0])
    started = ["python", str(program)] if program.name == "detect_manipulation.py" else ["vision-lowrank"]
    return shlex.join([*started, *sys.argv[1:]])


def _resuming(command: str) -> str:
    """Return `command` with ``--resume``, before what only paths come after."""
    words = shlex.split(command)
    end = words.index("--") if "--" in words else len(words)
    return shlex.join([*words[:end], *([] if "--resume" in words[:end] else ["--resume"]), *words[end:]])


def _watched(batches: Generator[list[ScanRow], None, None], total: int) -> list[ScanRow]:
    """Return the rows, with a progress bar; those so far where SIGINT or SIGTERM comes."""
    from ..engine.signals import SignalWatch

    rows: list[ScanRow] = []
    start = time.perf_counter()
    with SignalWatch() as watch, _bar(total) as bar, warnings.catch_warnings(), closing(batches):
        warnings.filterwarnings("ignore", module="PIL")  # what matters of them is in the rows
        for batch in batches:
            rows += batch
            speed = f"{len(rows) / (time.perf_counter() - start):.1f} images/s"
            bar.update(bar.task_ids[0], completed=len(rows), speed=speed)
            if watch.pending:
                break
    return rows


def _bar(total: int) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("scanning"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    bar.add_task("", total=total, speed="")
    return bar


def _write(out: Path, header: dict[str, Any], rows: Sequence[ScanRow], json: bool, csv: bool, html: bool) -> list[Path]:
    """Write the results asked for, and return their paths."""
    from ..inference.run import JOURNAL
    from ..viz.scan_report import write_scan_report

    files = []
    try:
        if json:
            files.append(out / "results.json")
            write_json(files[-1], header, rows)
        if csv:
            files.append(out / "results.csv")
            write_csv(files[-1], rows)
        if html:
            files.append(out / "report.html")
            write_scan_report(files[-1], header, [row.to_dict() for row in rows], out)
    except OSError as error:
        raise UserError(
            f"'{files[-1]}' cannot be written: {error.strerror or error}. The rows are in '{out / JOURNAL}': mend "
            f"that, and go on with: {plain(_resuming(header['command']))}"
        ) from None
    return files


def _say(header: dict[str, Any], rows: Sequence[ScanRow], files: Sequence[Path]) -> None:
    """Print the most suspicious pictures as a table, those without an answer on stderr, and where everything is."""
    for row in [row for row in rows if row.error][:_LISTED]:
        print(f"no answer: {plain(row.path)}: {plain(row.error or '')}", file=sys.stderr)
    suspicious = [row for row in rows if row.verdict in FAIL_ON["uncertain"]]
    suspicious.sort(key=lambda row: -(row.probability or 0))
    if suspicious:
        table = Table()
        table.add_column("picture", overflow="fold")
        table.add_column("verdict")
        table.add_column("likelihood", justify="right")
        for row in suspicious[:_LISTED]:
            table.add_row(Text(plain(row.path)), row.verdict, f"{100 * (row.probability or 0):.1f}%")
        print_table(table)
    tally = header["counts"]
    print(
        f"{len(rows)} pictures: {tally['edited']} edited, {tally['uncertain']} uncertain, {tally['real']} real, "
        f"{tally['error']} without an answer (threshold {header['threshold']:.3f}: {header['threshold_origin']})."
    )
    print(header["reading"])
    for path in files:
        print(f"wrote {plain(str(path))}")


def _exit(header: dict[str, Any], fail_on: str | None) -> None:
    """Leave with the code that the outcome asks for, or return."""
    tally = header["counts"]
    done = sum(tally.values())
    if not header["complete"]:
        command = plain(_resuming(header["command"]))
        print(f"interrupted after {done} of {header['inputs']} pictures. Go on with: {command}", file=sys.stderr)
        raise typer.Exit(130)
    if fail_on and any(tally[verdict] for verdict in FAIL_ON[fail_on]):
        raise typer.Exit(2)
    if tally["error"] and (fail_on or tally["error"] == done):
        raise typer.Exit(1)
