"""``vision-lowrank data validate`` and ``data convert``: pictures in ManipBench's schema, checked and converted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track

from ..data.manipulation.convert import convert
from ..data.manipulation.validate import Validation, validate
from ..files import write_text

SHOWN = 100


def validate_command(path: Path, json_path: Path | None, pictures: bool = True) -> bool:
    """Check a file or folder of the schema; print every problem, the first 100, and a summary.

    Args:
        path: FILE.jsonl, or a folder of such files.
        json_path: where to write all that was found.
        pictures: open pictures and masks too.

    Returns:
        Whether nothing is wrong.
    """
    found = validate(path, partial(_bar, "checking"), pictures)
    for problem in found.problems[:SHOWN]:
        print(f"{problem.file}:{problem.line}: {problem.message}")
    if len(found.problems) > SHOWN:
        print(f"... and {len(found.problems) - SHOWN:,} more: --json FILE writes them all.")
    print(_summary(found))
    if json_path:
        write_text(json_path, json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
    return not found.problems


def convert_command(form: str, source: Path, target: Path, derive: bool) -> None:
    """Convert a data set to the schema (`target` ends in .jsonl) or from it."""
    images = convert(form, source, target, derive, partial(_bar, "converting"))
    print(f"{len(images):,} pictures, {int((images.labels != 0).sum()):,} of them edited: {target}")


def _summary(found: Validation) -> str:
    labels = [f"{found.labels[label]:,} {name}" for label, name in enumerate(("real", "edited", "synthetic"))]
    annotated = [f"{count:,} with {key}" for key, count in found.annotated.items() if count]
    errors = f"{len(found.problems):,} problem{'' if len(found.problems) == 1 else 's'}"
    return f"{found.rows:,} pictures ({', '.join(labels)}; {', '.join(annotated) or 'nothing annotated'}): {errors}"


def _bar(name: str, numbers: Iterable[int]) -> Iterable[int]:
    console = Console(stderr=True)
    return track(numbers, name, console=console, transient=True, disable=not sys.stderr.isatty())
