"""``vision-lowrank data check``: which of the few-shot papers' data sets are complete, and what the others lack.

Names of registered data sets that give clips are checked by :mod:`.clip_data`.
"""

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

from ..data.coop_check import Report, check_set
from ..data.coop_download import fetch
from ..data.coop_sets import COOP_SETS, coop_set
from ..data.tracking.check import clip_data_sets
from ..errors import DataError, near_miss
from ..files import write_text
from .clip_data import clips_check_command
from .tables import print_table


def data_check_command(root: Path, names: list[str], json_path: Path | None, download: bool) -> bool:
    """Check the named data sets, or all of CoOp's, and print a table and what is missing.

    Returns:
        Whether all of them are complete.
    """
    if _are_of_clips([name for name in names if "=" not in name]):
        return clips_check_command(root, names, json_path)
    if not root.is_dir() and not download:
        raise DataError(f"folder '{root}' does not exist: give the folder that holds the data sets' folders.")
    specs = [coop_set(name) for name in names or COOP_SETS]
    reports = []
    for spec in specs:
        failed = []
        if download and spec.torchvision:
            try:
                fetch(spec, root)
            except DataError as error:
                failed = [str(error)]
        report = check_set(spec, root, partial(_bar, spec.key))
        report.problems = failed + report.problems
        reports.append(report)
    print_table(_table(reports))
    for report in reports:
        for problem in report.problems:
            print(problem)
    if json_path:
        rows = [asdict(report) | {"complete": not report.problems} for report in reports]
        write_text(json_path, json.dumps(rows, indent=1) + "\n")
    return not any(report.problems for report in reports)


def _are_of_clips(names: list[str]) -> bool:
    """Tell whether the named data sets give clips.

    Raises:
        DataError: one is unknown, or only some do.
    """
    of_clips = clip_data_sets()
    known = [*COOP_SETS, *of_clips]
    for name in names:
        if name not in known:
            raise DataError(
                f"unknown data set '{name}'.{near_miss(name, known)} Known: {', '.join(COOP_SETS)}; sets of clips: "
                f"{', '.join(of_clips)}."
            )
    if 0 < sum(name in of_clips for name in names) < len(names):
        raise DataError("sets of clips and other data sets are checked one after the other: name one kind.")
    return bool(names) and names[0] in of_clips


def _bar(name: str, keys: Sequence[str]) -> Iterable[str]:
    console = Console(stderr=True)
    return track(keys, name, console=console, transient=True, disable=not sys.stderr.isatty())


def _table(reports: list[Report]) -> Table:
    """Make a table of what was found; the lines below it say how that differs from what is published."""
    table = Table(show_lines=True)
    table.add_column("data set, folder, split file", overflow="fold", min_width=14)
    for column in ("classes", "train\nval\ntest", "files\nmissing", "cached\ndraws"):
        table.add_column(column, justify="right")
    table.add_column("test hash", overflow="fold")
    table.add_column("all\nthere")
    for report in reports:
        places = [Path(path).name for path in (report.folder, report.split) if path]
        numbers = ["", "", "", ""]
        if report.sizes:
            sizes = "\n".join(f"{found:,}" for found, _ in report.sizes.values())
            numbers = [str(report.classes[0]), sizes, f"{report.missing_files:,}", str(len(report.selections))]
        done = "no" if report.problems else "yes"
        table.add_row("\n".join([report.name, *places]), *numbers, report.hashes.get("test", ""), done)
    return table
