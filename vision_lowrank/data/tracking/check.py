"""Whether the clips of a data set on the disk are complete: how many there are, and what is wrong with each.

All annotations are read and all frames are looked for; pictures are not decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ...config.marks import OfKind
from ...errors import DataError, UserError
from ...registry import registry
from ..gives import read_data
from .base import Clip, ClipSet
from .reading import FileClip, FileClips

Watch = Callable[[Sequence[Clip]], Iterable[Clip]]


@dataclass
class ClipReport:
    """What was found of one set of clips.

    Attributes:
        name: of the data set.
        found: clips that are there.
        published: clips that the data set has; None where that is not known.
        frames: of all sound clips.
        hidden: frames of them where the target is not to be seen.
        notes: what was left out, one line each.
        problems: one line for each thing that is missing or damaged; empty = complete.
    """

    name: str
    found: int = 0
    published: int | None = None
    frames: int = 0
    hidden: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def clip_data_sets() -> list[str]:
    """List the registered data sets that give clips."""
    return [part.name for part in registry.list("data") if "clips" in part.gives.split()]


def check_clips(name: str, options: Mapping[str, str], watch: Watch = iter) -> ClipReport:
    """Read everything but the pictures of a data set.

    Args:
        name: a registered data set that gives clips.
        options: of its section, such as ``root`` and ``split``, as text.
        watch: wraps the clips, to show progress.

    Raises:
        UserError: an option is unknown, missing or has a bad value.
    """
    report = ClipReport(name)
    try:
        section = OfKind("data").check({"type": name, **options})
    except ValueError as error:
        raise UserError(f"data set '{name}': {str(error).rstrip('.')}; options are given as split=train.") from None
    try:
        splits = read_data(section, "clips")
    except DataError as error:
        report.problems.append(str(error))
        return report
    sets = [clips for clips in (splits.train, splits.val, *splits.tests.values()) if len(clips)]
    for clips in sets:
        _look(report, clips, watch)
    return report


def _look(report: ClipReport, clips: ClipSet, watch: Watch) -> None:
    report.found += len(clips)
    if isinstance(clips, FileClips):
        report.published = clips.published
        report.notes += clips.notes
        if clips.published is not None and clips.published != len(clips):
            report.problems.append(
                f"data set '{report.name}': {len(clips):,} clips, but {clips.published:,} are published."
            )
    for clip in watch(clips.clips):
        try:
            boxes, visible = clip.boxes, clip.visible
            if isinstance(clip, FileClip) and not clip.footage.frames[0].is_file():
                raise DataError(f"'{clip.name}': frame '{clip.footage.frames[0]}' does not exist: get it again.")
        except DataError as error:
            report.problems.append(str(error))
            continue
        report.frames += len(boxes)
        report.hidden += int((~visible).sum())
        report.notes += clip.footage.notes if isinstance(clip, FileClip) else ()
