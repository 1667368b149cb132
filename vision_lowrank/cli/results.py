"""``vision-lowrank results``: a tracker on a benchmark, its result files scored, and packed for servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track as progress_bar
from rich.table import Table

from ..config.load import apply_overrides
from ..config.marks import OfKind
from ..config.schema import Section
from ..data.gives import read_data
from ..data.tracking.base import ClipSet
from ..data.tracking.results import form_of
from ..data.tracking.servers import check_got10k, check_trackingnet, pack_got10k, pack_trackingnet
from ..errors import UserError, near_miss
from ..files import write_text
from ..metrics.names import is_share, title
from .tables import print_table
from .tracker import load_tracker, tracker_folder

SERVERS = {"got10k": (check_got10k, pack_got10k), "trackingnet": (check_trackingnet, pack_trackingnet)}


def clip_sets(words: Sequence[str]) -> dict[str, ClipSet]:
    """Read the test sets that a user names: a registered data set, and options of it as ``root=…``.

    Raises:
        UserError: there is no such data set, it gives no clips to test on, or an option does not fit.
    """
    names, options = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if len(names) != 1:
        raise UserError(f"{len(names)} data sets are named: give one, such as lasot root=datasets/lasot.")
    try:
        section: Section = OfKind("data").check(apply_overrides({"type": names[0]}, options))
    except ValueError as error:
        raise UserError(f"{names[0]}: {error}") from None
    tests = read_data(section, "clips").tests
    if not tests:
        raise UserError(f"data '{names[0]}' gives no clips to test on: set split=test.")
    return tests


def run_command(
    words: Sequence[str], out: Path, model: Path | None, form: str, repeats: int, jobs: int, part: str, device: str
) -> None:
    """Track all clips of a data set and write the results; call again to go on.

    Raises:
        UserError: an option or the model cannot be used; or a process of several failed.
    """
    share = parse_part(part)
    form_of(form)
    sets = clip_sets(words)
    folder = tracker_folder(model)
    if jobs > 1:
        options = {"out": out, "model": folder, "form": form, "repeats": repeats, "device": device}
        _share_out([*words, *(f"--{name}={value}" for name, value in options.items())], share, jobs)
        return
    tracker = load_tracker(folder, device)
    from ..tasks.tracking.benchmark import result_folder, run_benchmark  # torch, only now

    for name, clips in sets.items():
        results = result_folder(out if len(sets) == 1 else out / name, form, clips)
        count = run_benchmark(tracker, clips, results, repeats=repeats, part=share, watch=_bar)
        print(f"{name}: {len(clips):,} clips, {count:,} were left to track: {results.root}")


def score_command(
    words: Sequence[str], out: Path, form: str, convention: str, json_path: Path | None, per_clip: bool
) -> None:
    """Score the result files in a folder and print a table.

    Raises:
        UserError: an option cannot be used; DataError: a result is missing or damaged.
    """
    sets = clip_sets(words)
    from ..tasks.tracking.benchmark import result_folder, score_benchmark, too_short

    found = {}
    for name, clips in sets.items():
        results = result_folder(out if len(sets) == 1 else out / name, form, clips)
        scores, rate = score_benchmark(clips, results, convention)
        if short := too_short(clips, results):
            count = f"{len(short):,} result{'s' * (len(short) > 1)} in all"
            note = f"note: '{short[0]}' has too few rows ({count}): the frames that are missing count as failures."
            print(note, file=sys.stderr)
        found[name] = scores.to_dict() | {"frames_per_second": rate}
    print_table(_table(found, per_clip))
    if json_path:
        write_text(json_path, json.dumps(found) + "\n")


def pack_command(words: Sequence[str], out: Path, server: str, target: Path | None) -> None:
    """Check results for a server and, where a file is named, pack them.

    Raises:
        UserError: an unknown server, or the results cannot be sent: all mistakes are printed.
    """
    if server not in SERVERS:
        raise UserError(f"unknown server '{server}'.{near_miss(server, SERVERS)} Known: {', '.join(SERVERS)}.")
    (clips,) = clip_sets(words).values()
    check, pack = SERVERS[server]
    lengths = {clip.name: len(clip) for clip in clips.clips}
    mistakes = check(out, lengths)
    for line in mistakes[:100]:
        print(line, file=sys.stderr)
    if mistakes:
        raise UserError(f"{out}: {len(mistakes):,} mistakes, so {server}'s server would refuse it: mend them first.")
    print(f"{out}: {len(lengths):,} sequences, complete")
    if target is not None:
        print(pack(out, target, lengths))


def parse_part(part: str) -> tuple[int, int]:
    """Read ``r/n``; without one, the share of this process where torchrun started several.

    Raises:
        UserError: it is none.
    """
    text = part or f"{os.environ.get('RANK', 0)}/{os.environ.get('WORLD_SIZE', 1)}"
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise UserError(f"--part '{part}': give r/n with r below n, such as 0/4.")
    return int(first), int(second)


def _share_out(arguments: Sequence[str], share: tuple[int, int], jobs: int) -> None:
    """Run this command in several processes, which divide the cores and this process's share of the clips.

    Raises:
        UserError: one of them failed, and has said why.
    """
    first, step = share
    command = [sys.executable, "-m", "vision_lowrank", "results", "run", *arguments]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {"OMP_NUM_THREADS": threads} | os.environ
    running = [
        subprocess.Popen([*command, f"--part={first + step * number}/{step * jobs}"], env=environment)
        for number in range(jobs)
    ]
    failed = [process.returncode for process in running if process.wait()]
    if failed:
        raise UserError(f"{len(failed)} of {jobs} processes failed: call again to go on with what is left.")


def _bar(left: Sequence[Any]) -> Iterable[Any]:
    return progress_bar(left, "track clips", console=Console(stderr=True), disable=not sys.stderr.isatty())


def _table(found: dict[str, Any], per_clip: bool) -> Table:
    rows: list[tuple[str, dict[str, float | None]]] = []
    for name, each in found.items():
        rows.append((name, each["metrics"]))
        rows += [(f"  {attribute}", metrics) for attribute, metrics in each["attributes"].items()]
        rows += [(f"  {clip}", one["metrics"]) for clip, one in each["sequences"].items() if per_clip]
    columns = list(rows[0][1])
    convention = next(iter(found.values()))["convention"]
    table = Table(title=f"convention {convention}; shares in percent")
    table.add_column("clips")
    for column in columns:
        table.add_column(title(column), justify="right")
    for name, metrics in rows:
        table.add_row(name, *(_figure(column, metrics[column]) for column in columns))
    return table


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if is_share(name) else f"{value:.3f}"
