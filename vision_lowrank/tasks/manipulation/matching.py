"""Which predicted box stands for which annotated one: Hungarian matching, as in DETR (arXiv 2005.12872).

Boxes are (cx, cy, w, h) in [0, 1] of the picture. Per picture, K predictions and M annotated boxes, min(K, M) pairs of
the least total cost, where p is a prediction's objectness probability, ‖·‖₁ sums the four coordinates, I and U are the
areas of intersection and union, and E is that of the smallest box around both (GIoU: arXiv 1902.09630)::

    cost = 5 ‖b̂ - b‖₁ + 2 (1 - GIoU) - p            GIoU = I / U - (E - U) / E
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .decoders import corners


class Matches(NamedTuple):
    """P matched pairs of a batch, (P,) int64 each.

    Attributes:
        pictures: place in the batch.
        queries: predicted box, 0 … K-1.
        targets: annotated box, counted over the joined lists of all pictures.
    """

    pictures: Tensor
    queries: Tensor
    targets: Tensor


@torch.no_grad()
def match(
    boxes: Tensor, objectness: Tensor, targets: Sequence[Tensor], l1: float = 5.0, giou_weight: float = 2.0
) -> Matches:
    """Pair predicted with annotated boxes.

    Args:
        boxes: (B, K, 4).
        objectness: (B, K) logits.
        targets: B tensors (M_b, 4); M_b may be 0.
        l1: weight of the distance.
        giou_weight: weight of 1 - GIoU.
    """
    wanted = torch.cat(list(targets)).to(boxes)
    predicted = boxes[:, :, None]
    cost = l1 * (predicted - wanted).abs().sum(dim=-1) - objectness.sigmoid()[..., None]
    cost = cost + giou_weight * (1 - giou(corners(predicted), corners(wanted)))
    # of a diverged model any pairs will do: its loss is not finite, which the training loop reports
    table = cost.nan_to_num().cpu().numpy()
    rows, first = [], 0
    for picture, own in enumerate(targets):
        queries, chosen = linear_sum_assignment(table[picture, :, first : first + len(own)])
        rows += [(picture, int(query), first + int(target)) for query, target in zip(queries, chosen, strict=True)]
        first += len(own)
    return Matches(*torch.tensor(rows, dtype=torch.long, device=boxes.device).view(-1, 3).unbind(dim=1))


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Compute GIoU in (-1, 1] of boxes (…, 4) given by their corners; shapes broadcast.

    Boxes without area give no NaN.
    """
    tiny = torch.finfo(first.dtype).tiny
    inside = _area(torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:]))
    around = _area(torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:]))
    union = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:]) - inside
    return inside / union.clamp_min(tiny) - (around - union) / around.clamp_min(tiny)


def _area(low: Tensor, high: Tensor) -> Tensor:
    """Compute the area between two corners (…, 2); 0 where they are crossed."""
    return (high - low).clamp_min(0).prod(dim=-1)
