"""``vision-lowrank data check`` of sets of clips: a table, and a line for everything that is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..data.tracking.base import Clip
from ..data.tracking.check import ClipReport, check_clips
from ..errors import UserError
from ..files import write_text
from .tables import print_table

SHOWN = 100


def clips_check_command(root: Path, words: Sequence[str], json_path: Path | None) -> bool:
    """Check data sets that give clips; print a table, what was left out and what is wrong, the first 100 of each.

    Args:
        root: their folder.
        words: names of data sets, and options of theirs as ``split=train``.
        json_path: where to write all that was found.

    Returns:
        Whether all of them are complete.

    Raises:
        UserError: an option does not fit.
    """
    names = [word for word in words if "=" not in word]
    options = dict(word.split("=", 1) for word in words if "=" in word)
    if "root" in options:
        raise UserError(f"root={options['root']}: the folder is given before the names.")
    reports = [check_clips(name, {"root": str(root), **options}, partial(_bar, name)) for name in names]
    print_table(_table(reports))
    for report in reports:
        for lines in (report.notes, report.problems):
            print(*lines[:SHOWN], sep="\n", end="\n" if lines else "")
            if len(lines) > SHOWN:
                print(f"... and {len(lines) - SHOWN:,} more: --json FILE writes them all.")
    if json_path:
        rows = [asdict(report) | {"complete": not report.problems} for report in reports]
        write_text(json_path, json.dumps(rows, indent=1) + "\n")
    return not any(report.problems for report in reports)


def _bar(name: str, clips: Sequence[Clip]) -> Iterable[Clip]:
    return track(clips, name, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def _table(reports: Sequence[ClipReport]) -> Table:
    table = Table()
    for column in ("data set", "clips", "published", "frames", "target\nhidden", "problems", "all\nthere"):
        table.add_column(column, justify="left" if column == "data set" else "right")
    for report in reports:
        published = "" if report.published is None else f"{report.published:,}"
        counts = (f"{count:,}" for count in (report.frames, report.hidden, len(report.problems)))
        table.add_row(report.name, f"{report.found:,}", published, *counts, "no" if report.problems else "yes")
    return table
