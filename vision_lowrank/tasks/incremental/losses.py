"""CoACT's losses beside cross-entropy: the asynchronous contrastive term and the logit distance.

Paper: "Consistency-Guided Asynchronous Contrastive Tuning for Few-Shot Class-Incremental Tuning of Foundation Models",
arXiv 2405.16625. With features h of V views of the same B pictures, one set from the student and the others from
teachers, z = h / ‖h‖, N = V B rows in all, and P(i) the other rows of the class of row i::

    L_ACL = -1/N Σ_i 1/|P(i)| Σ_{p ∈ P(i)} log( exp(z_i·z_p / τ) / Σ_{a≠i} exp(z_i·z_a / τ) ),    τ = 0.07
    L_KD  = 1/(B |C|) Σ_b Σ_{c ∈ C} (s_bc - s⁰_bc)²

With two views and more every row has a positive, the same picture in another view. So L_ACL is the supervised
contrastive loss of :mod:`vision_lowrank.regularizers.contrastive` on the joined views, and the paper's terms are:
base session, student and teacher; incremental sessions, as its code has them, student, the base model's teacher and the
pretrained model, or as its figure has them, student and teacher plus student and base model.

s and s⁰ are the logits of the student and of the frozen base model. C are the columns that the base model was trained
on; the paper's code takes all, and so pulls new classes to the base model's untrained rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...regularizers.base import exact, gather_rows, wide
from ...regularizers.contrastive import contrastive_loss


def asynchronous_contrastive(
    student: Tensor, teacher: Tensor, *others: Tensor, labels: Tensor, tau: float = 0.07
) -> Tensor:
    """Compute L_ACL over the pictures of all processes.

    Args:
        student: features (B, d) of one view, with gradient; normalised here, as all are.
        teacher: features (B, d) of another view; no gradient goes to it.
        others: features (B, d) of further frozen models.
        labels: class numbers (B,).
        tau: temperature.
    """
    views = [student, *(view.detach() for view in (teacher, *others))]
    with exact(student):
        features = torch.cat([wide(view) for view in views])
        return contrastive_loss(gather_rows(features), gather_rows(labels.repeat(len(views))), tau)


def logit_distance(student: Tensor, base: Tensor, seen: Tensor | None = None) -> Tensor:
    """Compute L_KD of one batch.

    Args:
        student: logits (B, C) of all classes, none masked.
        base: logits (B, C_0) of the frozen base model; C_0 < C where classes were added since. No gradient goes to it.
        seen: (C_0,) booleans: the classes that the base model was trained on; None for all, as in the paper's code.
    """
    student = student[:, : base.shape[1]]
    if seen is not None:
        student, base = student[:, seen], base[:, seen]
    return F.mse_loss(wide(student), wide(base.detach()))
