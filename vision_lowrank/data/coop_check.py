"""Whether a CoOp data set on disk is the published one: folder, split file, sizes, picture files, selections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from .base import ImageSet, Splits
from .coop import read_splits
from .coop_fewshot_cache import cached_files, read_selection
from .coop_layout import SPLITS, Place, locate, missing
from .coop_sets import CoopSet
from .images import listed

Watch = Callable[[Sequence[str]], Iterable[str]]


@dataclass
class Report:
    """What was found of one data set.

    Attributes:
        name: its key.
        folder: where it is; None where there is none.
        split: its split file.
        classes: number of classes, and as published.
        sizes: pictures in train, val and test, and as published.
        missing_files: number of pictures that are listed but not there.
        selections: names of the few-shot selections on disk.
        hashes: identity of each split, as runs record it.
        problems: one sentence for each thing that is missing or differs; empty = complete.
    """

    name: str
    folder: str | None = None
    split: str | None = None
    classes: tuple[int, int] = (0, 0)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    missing_files: int = 0
    selections: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def check_set(spec: CoopSet, root: Path, watch: Watch = iter) -> Report:
    """Read a data set and compare it with the table; pictures are looked for, not decoded.

    Args:
        spec: the data set.
        root: the folder of all data sets.
        watch: wraps the list of picture files, to show progress.
    """
    place = locate(spec, root)
    report = Report(spec.key, problems=missing(spec, root, place))
    if place is None:
        return report
    report.folder, report.split = str(place.folder), str(place.split) if place.split else None
    if report.problems:
        return report
    try:
        splits = read_splits(spec, root)
    except DataError as error:
        report.problems.append(str(error))
        return report
    sets = dict(zip(SPLITS, (splits.train, splits.val, splits.tests["test"]), strict=True))
    _compare(spec, report, sets)
    _look_for_files(spec, report, place, sets, watch)
    _read_selections(report, place, splits)
    return report


def _compare(spec: CoopSet, report: Report, sets: dict[str, ImageSet]) -> None:
    report.hashes = {split: images.hash for split, images in sets.items() if len(images)}
    report.classes = (len(sets["test"].classes), spec.classes)
    report.sizes = {split: (len(sets[split]), size) for split, size in zip(SPLITS, spec.sizes, strict=True)}
    for what, (found, published) in {"classes": report.classes, **report.sizes}.items():
        if found != published:
            unit = "" if what == "classes" else " pictures"
            report.problems.append(f"data set '{spec.key}': {found:,} {what}{unit}, but {published:,} are published.")


def _look_for_files(spec: CoopSet, report: Report, place: Place, sets: dict[str, ImageSet], watch: Watch) -> None:
    if spec.source not in ("json", "variants") or place.images is None:
        return  # the list was made from the files
    keys = [key for images in sets.values() for key in images.keys]
    absent = [key for key in watch(keys) if not (place.images / key).is_file()]
    if absent:
        report.missing_files = len(absent)
        report.problems.append(
            f"data set '{spec.key}': {len(absent):,} of {len(keys):,} pictures are not in '{place.images}', such as "
            f"{listed(absent)}: get them from {spec.page}."
        )


def _read_selections(report: Report, place: Place, splits: Splits) -> None:
    for path in cached_files(place.folder):
        try:
            read_selection(path, splits.train, splits.val)
            report.selections.append(path.name)
        except DataError as error:
            report.problems.append(str(error))
