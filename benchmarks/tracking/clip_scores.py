"""Trackers on the test clips through result files: what is missing is followed, then the files are scored.

Files are in the form ``pytracking``, a folder per set of clips and tracker; scored as ``results score`` does, under
``pytracking-all``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plain_trackers import BASELINES, follow
from rich.progress import track

from vision_lowrank.data.tracking.base import ClipSet
from vision_lowrank.data.tracking.results import ResultFolder
from vision_lowrank.studies.run import summarise
from vision_lowrank.tasks.saved import load_model
from vision_lowrank.tasks.tracking.benchmark import result_folder, run_benchmark, score_benchmark
from vision_lowrank.tasks.tracking.model import TrackingModel

FORM = "pytracking"
KEPT = ("success_auc", "normalized_precision", "op50", "precision")


def baseline_results(name: str, clips: ClipSet, folder: Path) -> ResultFolder:
    """Follow with one of :data:`~plain_trackers.BASELINES` what is not followed yet.

    Args:
        name: of the tracker.
        clips: with their true first boxes.
        folder: for the results of all trackers and sets.
    """
    results = result_folder(folder / clips.hash / name.replace(" ", "_"), FORM, clips)
    left = [clip for clip in clips.clips if not results.is_complete(clip.name, len(clip))]
    for clip in track(left, name, disable=not left):
        results.write(clip.name, follow(BASELINES[name](), clip))
    return results


def tracker_results(artefact: Path, clips: ClipSet, folder: Path) -> ResultFolder:
    """Follow with a saved tracker what is not followed yet; arguments as :func:`baseline_results`.

    Raises:
        UserError: it is no tracker, or cannot be loaded.
    """
    model = load_model(artefact)
    if not isinstance(model, TrackingModel):
        raise SystemExit(f"{artefact}: a model for {model.task} follows nothing: give the artefact of a tracker.")
    results = result_folder(folder / clips.hash / f"tracker-{model.identity}", FORM, clips)
    run_benchmark(model, clips, results, watch=lambda left: track(left, "tracker", disable=not left))
    return results


def scores_of(results: ResultFolder, clips: ClipSet) -> dict[str, Any]:
    """Score result files: mean, spread and n over clips, means by attribute, and success of every clip."""
    scores, _ = score_benchmark(clips, results)
    by_clip = {clip.name: scores.sequences[clip.name].values for clip in clips.clips}
    return {
        "metrics": summarise({name: each[name] for name in KEPT} for each in by_clip.values()),
        "attributes": {name: each.values["success_auc"] for name, each in scores.attributes.items()},
        "clips": {name: each["success_auc"] for name, each in by_clip.items()},
    }


def scored_trackers(clips: ClipSet, folder: Path, artefact: Path | None) -> dict[str, dict[str, Any]]:
    """Score all baselines and, where there is one, a saved tracker: name -> :func:`scores_of`."""
    found = {name: scores_of(baseline_results(name, clips, folder), clips) for name in BASELINES}
    if artefact is not None:
        found["tiny-tracker"] = scores_of(tracker_results(artefact, clips, folder), clips)
    return found


def clips_by_attribute(clips: ClipSet) -> dict[str, int]:
    """Count the clips that have each attribute."""
    names = sorted({name for clip in clips.clips for name in clip.attributes})
    return {name: sum(name in clip.attributes for clip in clips.clips) for name in names}
