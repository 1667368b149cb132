"""LoRAT's online loop: one target through the frames of a video.

    start       cut the template around the first box; it never changes, see :class:`TemplateUpdate` for an experiment
    step        sides of the state box raised to 10 px about its middle -> search crop -> network -> p = sigmoid(logits)
                cell = argmax of (1 - w) p + w H,   w = 0.45,  H = outer product of two symmetric Hann windows
                box of the cell, back to the frame, clipped to it: the answer; its p, without window, is the score
                the state becomes the answer only where that is finite, has an area and lies in the frame

What is outside the frame is filled with the mean colour of the frame that the template was cut from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...data.geometry import CropMap, channel_means, draw_crop
from .cropping import normalised
from .losses import iou_and_giou

if TYPE_CHECKING:
    from .model import TrackingModel

WINDOW = 0.45
LEAST_SIDE = 10.0  # pixels


@dataclass(frozen=True)
class TemplateUpdate:
    """A second template, beside the first, that is cut anew when the tracker was sure for a while; not in LoRAT.

    Until then the first one is there twice.

    Attributes:
        frames: how many in a row must have had at least `score`; then they are counted anew.
        score: in [0, 1].
    """

    frames: int
    score: float


@dataclass(frozen=True)
class Following:
    """What may be done while following that LoRAT does not do; the defaults are LoRAT's.

    Attributes:
        update: of a second template; None: there is none.
        size_rate: r of :func:`damped`; 1: changes of size are taken at once.
        vote_iou: least overlap of :func:`voted`; 1: the best cell's box alone counts.
    """

    update: TemplateUpdate | None = None
    size_rate: float = 1.0
    vote_iou: float = 1.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Following:
        """Return what :func:`dataclasses.asdict` made plain; what is left out is LoRAT's."""
        update = values.get("update")
        return cls(**{**values, "update": TemplateUpdate(**update) if update else None})


LORAT = Following()


@dataclass
class Target:
    """What a tracker remembers of one target.

    Attributes:
        tokens: (1, hz wz, d), the template's.
        means: (3,) colour of what lies outside the frame, in [0, 255].
        box: (4,) left, top, right, bottom in pixels, where it was seen last.
        recent: (1, hz wz, d), the second template's, once there is one.
        sure: frames in a row that count towards the next one.
    """

    tokens: Tensor
    means: np.ndarray
    box: np.ndarray
    recent: Tensor | None = None
    sure: int = 0

    def templates(self, update: TemplateUpdate | None) -> Tensor:
        """Return the tokens of its template, or of both where there is an update: (1, n, d)."""
        if update is None:
            return self.tokens
        return torch.cat([self.tokens, self.tokens if self.recent is None else self.recent], dim=1)


@dataclass(frozen=True)
class Tracked:
    """Where a target is in one frame.

    Attributes:
        box: (4,) left, top, width, height in pixels, inside the frame.
        score: in [0, 1].
    """

    box: np.ndarray
    score: float


@torch.inference_mode()
def start_target(model: TrackingModel, frame: np.ndarray, box: np.ndarray) -> Target:
    """Begin to follow what lies in `box` (4,) xyxy of a frame (H, W, 3) uint8 RGB."""
    return Target(_template(model, frame, box), channel_means(frame), box)


@torch.inference_mode()
def step_targets(model: TrackingModel, frames: Sequence[np.ndarray], targets: Sequence[Target]) -> list[Tracked]:
    """Find each target in its next frame, all in one batch, and let it remember where it is."""
    drawn = [_search_crop(model, frame, target) for frame, target in zip(frames, targets, strict=True)]
    pixels = normalised(torch.stack([crop for crop, _ in drawn]).to(model.device), model.preprocess)
    found = model.find(torch.cat([target.templates(model.following.update) for target in targets]), pixels)
    scores = found.logits.sigmoid()
    windowed = (1 - WINDOW) * scores + WINDOW * hann_window(model.embedding.search).to(scores)
    best = windowed.flatten(1).argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    boxes = voted(found.boxes.flatten(1, 2), scores.flatten(1), best, model.following.vote_iou)
    boxes = boxes.double().cpu().numpy() * model.cropping.search
    chosen = scores.flatten(1)[rows, best].tolist()
    answers = [
        _moved(target, damped(crop_map.to_frame(box), target.box, model.following.size_rate), score, frame)
        for target, (_, crop_map), box, score, frame in zip(targets, drawn, boxes, chosen, frames, strict=True)
    ]
    for target, frame, answer in zip(targets, frames, answers, strict=True):
        renew_template(model, target, frame, answer)
    return answers


@torch.inference_mode()
def renew_template(model: TrackingModel, target: Target, frame: np.ndarray, answer: Tracked) -> None:
    """Count a frame in which a target was found, and cut its second template there when it is time to."""
    update = model.following.update
    if update is None:
        return
    sure = answer.score >= update.score and bool((answer.box[2:] > 0).all())
    target.sure = target.sure + 1 if sure else 0
    if target.sure >= update.frames:
        target.recent, target.sure = _template(model, frame, target.box), 0


def voted(boxes: Tensor, scores: Tensor, best: Tensor, least: float) -> Tensor:
    """Average the boxes of the cells that agree with the best one (box voting, arXiv 1505.01749)::

        b = sum_i p_i^2 b_i / sum_i p_i^2    over all i whose box overlaps that of the best cell by IoU >= least

    Args:
        boxes: (B, n, 4) xyxy, of all cells.
        scores: (B, n) in [0, 1], p.
        best: (B,) indices of cells; theirs always count.
        least: in (0, 1]; 1 returns the best cells' boxes.

    Returns:
        (B, 4).
    """
    rows = torch.arange(len(best), device=best.device)
    if least == 1:
        return boxes[rows, best]
    overlap, _ = iou_and_giou(boxes, boxes[rows, best][:, None])
    counts = overlap >= least
    counts[rows, best] = True
    weights = torch.where(counts, scores.square().clamp_min(torch.finfo(scores.dtype).tiny), 0)[..., None]
    return (weights * boxes.where(counts[..., None], 0)).sum(dim=1) / weights.sum(dim=1)


def damped(box: np.ndarray, before: np.ndarray, rate: float) -> np.ndarray:
    """Return a box (4,) xyxy with sides s_before^(1 - r) s_found^r: a share r of each change; its middle stays.

    Args:
        box: where the target was found.
        before: where it was.
        rate: r, in (0, 1]; 1 leaves the box as it is.
    """
    sides, old = box[2:] - box[:2], before[2:] - before[:2]
    if rate == 1 or not (sides > 0).all():
        return box
    middle, half = (box[:2] + box[2:]) / 2, old * (sides / old) ** rate / 2
    return np.concatenate([middle - half, middle + half])


def hann_window(grid: tuple[int, int]) -> Tensor:
    """Return the outer product of symmetric Hann windows, (rows, columns), zero at the border."""
    rows, columns = (torch.hann_window(n, periodic=False) for n in grid)
    return rows[:, None] * columns


def _template(model: TrackingModel, frame: np.ndarray, box: np.ndarray) -> Tensor:
    crop, mask = model.cropping.cut_template(frame, box, model.embedding.template)
    pixels = normalised(crop[None].to(model.device), model.preprocess)
    return model.embedding.template_tokens(model.trunk, pixels, mask[None].to(model.device))


def _search_crop(model: TrackingModel, frame: np.ndarray, target: Target) -> tuple[Tensor, CropMap]:
    middle, sides = (target.box[:2] + target.box[2:]) / 2, np.maximum(target.box[2:] - target.box[:2], LEAST_SIDE)
    around = np.concatenate([middle - sides / 2, middle + sides / 2])
    size = (model.cropping.search, model.cropping.search)
    return draw_crop(frame, model.cropping.search_map(around), size, target.means)


def _moved(target: Target, box: np.ndarray, score: float, frame: np.ndarray) -> Tracked:
    """Let a target move to `box` (4,) xyxy, if that can be."""
    limits = np.tile(frame.shape[1::-1], 2)
    clipped = np.clip(box, 0, limits)
    if np.isfinite(clipped).all() and (clipped[2:] > clipped[:2]).all():
        target.box = clipped
    answer = clipped if np.isfinite(clipped).all() else target.box
    return Tracked(np.concatenate([answer[:2], answer[2:] - answer[:2]]), float(score))
