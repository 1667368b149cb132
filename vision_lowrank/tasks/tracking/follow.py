"""One-pass evaluation: a target is shown in the first frame, and followed through the rest of its clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...data.tracking.base import Clip, ClipSet
from ...metrics.tracking.base import Prediction, Truth
from ...metrics.tracking.score import DEFAULT, TrackingScores, score_tracking
from .model import TrackingModel
from .online import step_targets


def follow_clips(model: TrackingModel, clips: Sequence[Clip]) -> list[np.ndarray]:
    """Follow the targets of several clips side by side.

    Returns:
        For each clip (L, 4) float64, left, top, width, height in pixels; the first row is the true box.
    """
    targets = [model.start(clip.frame(0), clip.boxes[0]) for clip in clips]
    boxes = [[clip.boxes[0]] for clip in clips]
    for index in range(1, max(map(len, clips))):
        going = [number for number, clip in enumerate(clips) if index < len(clip)]
        frames = [clips[number].frame(index) for number in going]
        for number, found in zip(going, step_targets(model, frames, [targets[n] for n in going]), strict=True):
            boxes[number].append(found.box)
    return [np.stack(each) for each in boxes]


def still(clip: Clip) -> np.ndarray:
    """Return the first true box for every frame of a clip, (L, 4): a tracker that sees no motion."""
    return np.repeat(clip.boxes[:1], len(clip), axis=0)


def score_clips(
    clips: ClipSet, boxes: Sequence[np.ndarray], convention: str = DEFAULT, benchmark: str | None = None
) -> TrackingScores:
    """Score what was answered for the clips of a set.

    Args:
        clips: the set.
        boxes: of every clip (L, 4), left, top, width, height in pixels.
        convention: a key of :data:`vision_lowrank.metrics.tracking.score.CONVENTIONS`.
        benchmark: what decides how absent targets count; None = the set's name.
    """
    predictions = {clip.name: [Prediction(each, clip.name)] for clip, each in zip(clips.clips, boxes, strict=True)}
    truths = [Truth(clip.name, clip.boxes, clip.visible, clip.size, clip.attributes) for clip in clips.clips]
    return score_tracking(predictions, truths, convention, clips.name if benchmark is None else benchmark)
