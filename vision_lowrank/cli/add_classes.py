"""``vision-lowrank add-classes``: new classes for a saved artefact, from a few pictures; and taken back again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import track
from rich.table import Table

from ..errors import UserError
from ..files import sibling, write_text
from ..tasks.about import read_about
from .tables import print_table

if TYPE_CHECKING:
    from ..tasks.classification.growth import Growth, OldClasses


def add_classes_command(
    artefact: Path,
    pictures: Path | None,
    take_back: bool,
    min_pictures: int,
    batch_size: int,
    json_path: Path | None,
    dry_run: bool,
    trust: bool = False,
) -> None:
    """Add the classes in `pictures`, or take the last addition back; print what that does and write it to a file.

    Raises:
        UserError: both or neither were asked for; or as :mod:`..tasks.classification.growing`.
    """
    if (pictures is not None) == take_back:
        raise UserError("add-classes: give either the FOLDER of the new classes' pictures, or --undo.")
    read_about(artefact)
    if pictures is not None and not pictures.is_dir():
        raise UserError(f"folder '{pictures}' does not exist.{sibling(pictures)}")
    from ..tasks.classification.growing import add_classes, undo  # torch, only now

    if pictures is None:
        names = undo(artefact, dry_run=dry_run)
        numbers = {"undone": list(names)}
        print(f"{'would take' if dry_run else 'took'} back {_counted(len(names), 'class', 'es')}: {', '.join(names)}")
    else:
        growth = add_classes(
            artefact,
            pictures,
            min_pictures=min_pictures,
            batch_size=batch_size,
            dry_run=dry_run,
            show=_bar,
            trust=trust,
        )
        numbers = asdict(growth)
        _print(growth, artefact, dry_run)
    if json_path:
        write_text(json_path, json.dumps(numbers | {"dry_run": dry_run}, indent=1, ensure_ascii=False) + "\n")


def _bar(starts: range) -> Iterable[int]:
    return track(starts, "encoding", disable=len(starts) < 3 or not sys.stderr.isatty())


def _print(growth: Growth, artefact: Path, dry_run: bool) -> None:
    title = f"{'would add' if dry_run else 'added'} {_counted(len(growth.new), 'class', 'es')}"
    table = Table("class", title=f"{title} to {growth.classes_before} (accuracies in percent)")
    for column in ("pictures", "accuracy", "leave-one-out"):
        table.add_column(column, justify="right")
    for new in growth.new:
        left_out = "" if new.left_out is None else _percent(new.left_out)
        table.add_row(escape(new.name), str(new.pictures), _percent(new.accuracy), left_out)
    print_table(table)
    if growth.head == "text":
        print("The names in the prompts are the classifier: the pictures only checked it.")
    if growth.old is None:
        print(f"What changed on the old classes is not known: {artefact} keeps no reference features of them.")
        return
    for table in _old_tables(growth.old, growth.classes_before):
        print_table(table)


def _old_tables(old: OldClasses, classes: int) -> Iterator[Table]:
    pictures = _counted(old.pictures, "picture", "s")
    table = Table("old classes", title=f"{pictures} of {old.classes} of {classes} old classes")
    table.add_column("", justify="right")
    table.add_row("accuracy before", _percent(old.before))
    table.add_row("accuracy after", _percent(old.after))
    table.add_row("pictures that go to a new class", str(old.taken))
    yield table
    if old.worst:
        table = Table("old class", title="lost most")
        table.add_column("before", justify="right")
        table.add_column("after", justify="right")
        table.add_column("taken by")
        for loss in old.worst:
            table.add_row(escape(loss.name), _percent(loss.before), _percent(loss.after), escape(loss.by))
        yield table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _counted(count: int, noun: str, plural: str) -> str:
    return f"{count} {noun}{plural if count != 1 else ''}"
