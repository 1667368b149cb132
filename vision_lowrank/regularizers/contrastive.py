"""Supervised contrastive term: features of one class together, those of others apart.

Papers: "Effectiveness of Data Augmentation for Parameter Efficient Tuning with Limited Data", arXiv 2303.02577, which
adds it to prefix tuning; its form is that of "Supervised Contrastive Learning", arXiv 2004.11362. With the features
f_i (e,) of all rows of a batch, z_i = f_i / ‖f_i‖, labels y and P(i) = {p ≠ i : y_p = y_i}::

    L_con = mean over i with P(i) ≠ ∅ of  -1/|P(i)| Σ_{p ∈ P(i)} log( exp(z_i·z_p / τ) / Σ_{a≠i} exp(z_i·z_a / τ) )
    L = (1 - w) L_CE + w L_con

The task adds L_CE and the engine what is returned here, which is therefore w (L_con - L_CE): that is the value logged
as ``contrastive``. w = 0 is plain training; with w = 1 nothing reaches the head.

A batch may hold several views of each picture (``task.views=2``); each counts as a row, so at one shot per class the
other views are the only positives.

With Mixup or CutMix (``task.mixup``, ``task.cutmix``) labels are weights y (B, C). Only unmixed views are contrasted:
the task mixes the first view of each picture and leaves the others alone, and rows that are no single class are left
out of L_con, though not of L_CE. With ``soft_positives`` all views are mixed, and P(i) becomes weights y_i·y_p
normalised over p ≠ i.

Reconstructed: the paper's abstract names "a contrastive loss" without its formula; form, τ and w are this project's.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..config.schema import RunConfig
from ..errors import UserError
from ..registry import register
from .base import Observed, Penalty, Regularizer, exact, gather_rows, wide


@register(
    "regularizer", "supervised_contrastive", summary="features of one class together, of others apart",
    paper="arXiv 2303.02577",
)  # fmt: skip
class SupervisedContrastive(Regularizer):
    """Options of the supervised contrastive term."""

    type: Literal["supervised_contrastive"] = "supervised_contrastive"
    w: float = Field(0.5, ge=0, le=1, description="share of the contrastive term; cross-entropy keeps the rest")
    tau: float = Field(0.1, gt=0, description="temperature of the similarities")
    soft_positives: bool = Field(False, description="mixed pictures are positives in part, instead of left out")

    def check(self, config: RunConfig) -> None:
        """Refuse a task that does not take it, and batches in which no row has a positive.

        Raises:
            UserError: either of these.
        """
        super().check(config)
        shots, views = (getattr(config.task, name, 2) for name in ("shots", "views"))
        mixing = any(getattr(config.task, name, 0) for name in ("mixup", "cutmix"))
        if not self.w or (mixing and self.soft_positives):
            return
        unmixed = views - 1 if mixing else views
        if not unmixed:
            raise UserError(
                "regularizer supervised_contrastive: mixed pictures are left out and all are mixed: set task.views=2, "
                "of which one stays unmixed, or regularizer.soft_positives=true."
            )
        if shots == unmixed == 1:
            raise UserError(
                "regularizer supervised_contrastive: with one picture per class no row has a positive: "
                f"set task.views={views + 1}, or more task.shots."
            )

    @property
    def wants_unmixed(self) -> bool:
        """Unless positives are soft, or it has no weight."""
        return self.w > 0 and not self.soft_positives

    def start(self) -> ContrastivePenalty:
        """Start the term with its weight."""
        return ContrastivePenalty(self)


class ContrastivePenalty(Penalty):
    """w (L_con - L_CE) of one batch; nothing where w = 0."""

    def __init__(self, options: SupervisedContrastive) -> None:
        super().__init__()
        self.options = options

    def losses(self, seen: Observed) -> dict[str, Tensor]:
        """Compute ``contrastive``."""
        options = self.options
        if not options.w:
            return {}
        with exact(seen.logits):
            features, labels = gather_rows(wide(seen.features)), gather_rows(seen.labels)
            contrast = contrastive_loss(features, labels, options.tau, options.soft_positives)
            return {"contrastive": options.w * (contrast - F.cross_entropy(wide(seen.logits), seen.labels))}


def contrastive_loss(features: Tensor, labels: Tensor, tau: float = 0.1, soft_positives: bool = False) -> Tensor:
    """Compute L_con of features (B, e); 0 where no row has a positive.

    Args:
        features: one row per view; normalised here.
        labels: (B,) class numbers, or (B, C) weights that sum to 1.
        tau: temperature.
        soft_positives: what to do with rows of several classes: False leaves them out, True weighs their pairs.
    """
    if labels.dim() == 2 and not soft_positives:
        single = labels.max(dim=-1).values == 1
        features, labels = features[single], labels[single].argmax(dim=-1)
    z = F.normalize(features, dim=-1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    pairs = labels[:, None] == labels if labels.dim() == 1 else labels @ labels.T
    weights = pairs.to(z.dtype).masked_fill(itself, 0.0)
    total = weights.sum(dim=-1)
    log_p = (z @ z.T / tau).masked_fill(itself, -torch.inf).log_softmax(dim=-1).masked_fill(itself, 0.0)
    anchors = total > 0
    each = -(weights * log_p).sum(dim=-1)[anchors] / total[anchors]
    return each.sum() / anchors.sum().clamp_min(1)
