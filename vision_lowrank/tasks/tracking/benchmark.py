"""A tracker on a benchmark, through result files: run, go on where a run stopped, and score whatever files there are.

Results are written clip by clip, times included, in one of the forms of :mod:`vision_lowrank.data.tracking.results`; a
clip whose file is complete is left out. Several processes share the clips by strides. Scores are computed from the
files alone, so a stranger's results are scored as one's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.tracking.base import Clip, ClipSet
from ...data.tracking.reading import truth_of
from ...data.tracking.results import ResultFolder, form_of
from ...metrics.tracking.base import Prediction
from ...metrics.tracking.score import DEFAULT, TrackingScores, frames_per_second, score_tracking
from .model import TrackingModel

Watch = Callable[[Sequence[Any]], Iterable[Any]]


def result_folder(root: Path, form: str, clips: ClipSet) -> ResultFolder:
    """Return where results of a set are, in a form; boxes count from where the set's do."""
    return ResultFolder(root, form_of(form), getattr(clips, "origin", 0))


def run_benchmark(
    model: TrackingModel,
    clips: ClipSet,
    folder: ResultFolder,
    *,
    repeats: int = 1,
    part: tuple[int, int] = (0, 1),
    watch: Watch = iter,
) -> int:
    """Follow the target of every clip once, without help, and write where it was.

    Args:
        model: the tracker.
        clips: the benchmark.
        folder: for the results.
        repeats: runs of every clip.
        part: which share of the clips, r of n: clips r, r + n, …
        watch: goes through what is left to do, such as a progress bar.

    Returns:
        How many runs were left to do.
    """
    numbers = [None] if repeats == 1 else list(range(1, repeats + 1))
    chosen = [clips[index] for index in range(part[0], len(clips), part[1])]
    left = [(clip, n) for clip in chosen for n in numbers if not folder.is_complete(clip.name, len(clip), n)]
    for clip, number in watch(left):
        boxes, seconds = follow_timed(model, clip)
        folder.write(clip.name, boxes, seconds, number)
    return len(left)


def follow_timed(model: TrackingModel, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Follow a clip's target; returns boxes (L, 4) xywh and seconds (L,), reading of frames left out."""
    frame, begin = clip.frame(0), time.perf_counter()
    target = model.start(frame, clip.box(0))
    boxes, seconds = [clip.box(0)], [time.perf_counter() - begin]
    for index in range(1, len(clip)):
        frame, begin = clip.frame(index), time.perf_counter()
        boxes.append(model.track_many([frame], [target])[0].box)
        seconds.append(time.perf_counter() - begin)
    return np.stack(boxes), np.array(seconds)


def score_benchmark(
    clips: ClipSet, folder: ResultFolder, convention: str = DEFAULT
) -> tuple[TrackingScores, float | None]:
    """Score result files; returns the scores and frames per second, None where no times were written.

    Raises:
        DataError: a result is missing, too short or damaged; or the true boxes are withheld.
        UserError: the convention is unknown.
    """
    predictions: dict[str, list[Prediction]] = {
        clip.name: folder.read_all(clip.name, None if convention.startswith("pytracking") else len(clip))
        for clip in clips.clips
    }
    scores = score_tracking(predictions, [truth_of(clip) for clip in clips.clips], convention, clips.name)
    times = [folder.read_times(clip.name) for clip in clips.clips]
    known = [each[1:].ravel() for each in times if each is not None]
    return scores, frames_per_second(np.concatenate(known)) if known else None


def too_short(clips: ClipSet, folder: ResultFolder) -> list[str]:
    """Return the names of clips with a result that has fewer rows than the clip has frames."""
    return [c.name for c in clips.clips if any(len(each.boxes) < len(c) for each in folder.read_all(c.name))]
