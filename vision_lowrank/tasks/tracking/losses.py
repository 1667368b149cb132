"""LoRAT's losses. With the true box g and predicted boxes p of all cells, as shares of the search crop::

    positives    all cells that the true box, clipped to the crop, touches (no centre sampling)
    cls          binary cross-entropy with logits over all cells; target IoU(p, g), no gradient, at positives, else 0;
                 with labels "one", not LoRAT's, the target is 1 at positives: while boxes are poor, as in pretraining
                 from little, their IoU says hardly more than 0, and cells learn nothing to tell them apart
    reg          1 - GIoU(p, g) at positives
    total        (sum cls + sum reg) / n,   n = mean over processes of the positives of the batch, at least 1

All in float32, with 1e-6 on union and enclosing area. A batch without positives has reg = 0 that depends on the boxes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .head import Found

EPS = 1e-6


def iou_and_giou(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Compute IoU and generalised IoU (arXiv 1902.09630) of boxes (..., 4) xyxy -> (...), (...); shapes broadcast."""
    both = _area(torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:]))
    union = _area(one[..., :2], one[..., 2:]) + _area(other[..., :2], other[..., 2:]) - both
    around = _area(torch.minimum(one[..., :2], other[..., :2]), torch.maximum(one[..., 2:], other[..., 2:]))
    iou = both / (union + EPS)
    return iou, iou - (around - union) / (around + EPS)


def tracking_losses(
    found: Found, boxes: Tensor, positives: Tensor, labels: Literal["iou", "one"] = "iou"
) -> dict[str, Tensor]:
    """Compute ``{"loss", "cls", "reg"}``.

    Args:
        found: what the head says.
        boxes: (B, 4) true boxes, clipped to the crop, as shares of its sides.
        positives: (B, h, w) bool.
        labels: what the score of a positive cell should be.
    """
    true = boxes[:, None, None].expand_as(found.boxes)[positives].float()
    iou, giou = iou_and_giou(found.boxes[positives], true)
    target = torch.zeros_like(found.logits)
    target[positives] = iou.detach() if labels == "iou" else 1.0
    n = _over_processes(positives.sum().float()).clamp(min=1)
    cls = F.binary_cross_entropy_with_logits(found.logits, target, reduction="sum") / n
    reg = (1 - giou).sum() / n + 0 * found.boxes.sum()
    return {"loss": cls + reg, "cls": cls.detach(), "reg": reg.detach()}


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(dim=-1)


def _over_processes(value: Tensor) -> Tensor:
    """Average over processes."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value
