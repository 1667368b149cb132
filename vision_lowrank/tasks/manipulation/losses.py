"""The loss of ManipShield's decoders, where each picture brings only some of the annotations.

Paper: ManipShield, arXiv 2511.14259; the terms are reconstructed. In brackets, the pictures a term is the mean over::

    L =  detection  BCE(logit, edited), edited ones weighing pos_weight = #real / #edited     [all]
      +  cues       BCE over C                                                                [edited with cues]
      +  boxes      5 ‖b̂ - b‖₁ + 2 (1 - GIoU), mean over matched pairs of boxes               [edited with a box]
      +  objectness BCE over K, 1 for matched predictions and 0 for the others                [boxes known]
      +  tokens     BCE over the valid tokens, target = edited share of the token's cell      [tokens known]

Of a real picture boxes and tokens are always known: there are none, and all is 0. A term without a picture is 0 and
sends a zero gradient through its head, so that every process has one.

Detection is binary: a fully synthetic picture (label 2) counts as edited. It brings no boxes, as nothing local was
changed, and so takes no part in the terms on places.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ...config.schema import Section
from .decoders import Decoded, corners
from .matching import giou, match


class Targets(NamedTuple):
    """What is known of B pictures. Values that are not known are there but not looked at: any finite number.

    Attributes:
        edited: (B,) the label: 0 real, all others edited.
        has_cues: (B,) bool; of no effect for real pictures.
        cues: (B, C) float, 0 or 1.
        has_boxes: (B,) bool: annotated, be it with none; a real picture's are known anyway.
        boxes: B tensors (M, 4) float cx, cy, w, h in [0, 1]; M = 0 where there are none or they are not known.
        has_tokens: (B,) bool; a real picture's are known anyway.
        tokens: (B, N) float, edited share in [0, 1] of each token's cell; ignored for real pictures.
    """

    edited: Tensor
    has_cues: Tensor
    cues: Tensor
    has_boxes: Tensor
    boxes: list[Tensor]
    has_tokens: Tensor
    tokens: Tensor


class LossWeights(Section):
    """Weights of the terms."""

    detection: float = Field(1.0, ge=0, description="of the edited-or-real term")
    cues: float = Field(1.0, ge=0, description="of the cue term")
    l1: float = Field(5.0, ge=0, description="of the boxes' distance, also in matching")
    giou: float = Field(2.0, ge=0, description="of the boxes' 1 - GIoU, also in matching")
    objectness: float = Field(1.0, ge=0, description="of the objectness term")
    tokens: float = Field(1.0, ge=0, description="of the token map's term")


class Losses(NamedTuple):
    """The terms of one batch, by name; those of heads that the decoder lacks are missing.

    Attributes:
        terms: scalars with their weights; their sum is L.
        used: float scalars: pictures, for ``boxes`` pairs, that each term was the mean over.
    """

    terms: dict[str, Tensor]
    used: dict[str, Tensor]


def decoder_losses(
    decoded: Decoded, targets: Targets, weights: LossWeights | None = None, pos_weight: float = 1.0
) -> Losses:
    """Compute the loss of one batch.

    Args:
        decoded: what the decoder said.
        targets: what is known.
        weights: of the terms; None = the defaults above.
        pos_weight: weight of edited pictures in detection.
    """
    weights = weights or LossWeights()
    edited = (targets.edited > 0).to(decoded.logit)
    real = edited == 0
    balance = edited.new_tensor(pos_weight)
    detection = F.binary_cross_entropy_with_logits(decoded.logit, edited, pos_weight=balance, reduction="none")
    terms = {"detection": (weights.detection, detection, torch.ones_like(real))}
    if decoded.cues.shape[1]:
        cues = _bce(decoded.cues, targets.cues).mean(dim=-1)
        terms["cues"] = (weights.cues, cues, targets.has_cues & ~real)
    if decoded.boxes.shape[1]:
        pairs, matched = _box_errors(decoded, targets.boxes, weights)
        terms["boxes"] = (1.0, pairs, torch.ones_like(pairs))
        objectness = _bce(decoded.objectness, matched).mean(dim=-1)
        terms["objectness"] = (weights.objectness, objectness, targets.has_boxes | real)
    if decoded.tokens is not None:
        shares = targets.tokens * edited[:, None]
        tokens = (_bce(decoded.tokens, shares) * decoded.valid).sum(dim=-1) / decoded.valid.sum(dim=-1)
        terms["tokens"] = (weights.tokens, tokens, targets.has_tokens | real)
    return Losses(
        {name: weight * _mean(values, known) for name, (weight, values, known) in terms.items()},
        {name: known.sum().float() for name, (_, _, known) in terms.items()},
    )


def _box_errors(decoded: Decoded, boxes: list[Tensor], weights: LossWeights) -> tuple[Tensor, Tensor]:
    """Compute the weighted errors (P,) of the matched pairs, and (B, K) 1 for matched predictions, 0 for the others."""
    pairs = match(decoded.boxes, decoded.objectness, boxes, weights.l1, weights.giou)
    found = decoded.boxes[pairs.pictures, pairs.queries]
    wanted = torch.cat(boxes).to(found)[pairs.targets]
    distance, overlap = (found - wanted).abs().sum(dim=-1), giou(corners(found), corners(wanted))
    matched = torch.zeros_like(decoded.objectness)
    matched[pairs.pictures, pairs.queries] = 1.0
    return weights.l1 * distance + weights.giou * (1 - overlap), matched


def _bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the binary cross-entropy of every value."""
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="none")


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Compute the mean of the values (B,) that are known; 0 where none is."""
    return (values * known).sum() / known.sum().clamp_min(1)
