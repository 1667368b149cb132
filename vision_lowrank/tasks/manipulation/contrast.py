"""Contrastive training of a vision tower on photographs and their edits: ManipShield's stage A.

Paper: ManipShield, arXiv 2511.14259; its formula could not be read, so both readings are here. A batch holds n pairs
of a real photograph and its edit, "twins". With features f (2n, D), z = g(f) / ‖g(f)‖ and S = z zᵀ / τ::

    pair    L_i = -( S_i,twin(i) - log Σ_{j≠i} exp S_ij )
    label   L_i = -1/|P(i)| Σ_{p∈P(i)} ( S_ip - log Σ_{j≠i} w_ij exp S_ij ),   P(i) = {j ≠ i : y_j = y_i}

averaged over rows. In `label` the twin is a hard negative, with weight w_i,twin(i) = `twin_weight`; all other weights
are 1. `pair`, the literal reading, draws a photograph and its edit together: the opposite of telling them apart.

Both are the supervised contrastive loss of :mod:`vision_lowrank.regularizers.contrastive`. `pair` is that loss with
each pair a class of its own. `label` with weights is, with q_i = exp S_i,twin(i) / Σ_{j≠i} exp S_ij,

    label(w) = label(1) + mean_i log( 1 + (w - 1) q_i )

because log Σ_j w_ij exp S_ij = log Σ_j exp S_ij + log(1 + (w - 1) q_i).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...regularizers.base import exact, gather_rows, wide
from ...regularizers.contrastive import contrastive_loss as supervised_contrastive
from .layer_discrimination import probe_auc

Reading: TypeAlias = Literal["label", "pair"]


def projector(width: int, out: int = 128) -> nn.Sequential:
    """Build g: features (B, `width`) -> (B, `out`); dropped after the stage."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))


def contrastive_loss(
    z: Tensor,
    labels: Tensor,
    twins: Tensor,
    reading: Reading = "label",
    tau: float = 0.2,
    twin_weight: float = 1.0,
) -> Tensor:
    """Compute the loss over the rows of all processes; 0 where no row has a positive.

    If processes add it with weights that sum to 1, the gradients summed over them are the loss's.

    Args:
        z: (B, e) of this process, with gradient; normalised here.
        labels: (B,) 0 real, 1 edited.
        twins: (B,) int64, row of each row's twin: twins[twins[i]] = i; its own row where it has none.
        reading: `label` or `pair`.
        tau: temperature.
        twin_weight: w ≥ 1 of the twin among the negatives of `label`; without effect in `pair`.
    """
    with exact(z):
        z, labels, twins = gather_rows(wide(z)), gather_rows(labels), _gather_twins(twins)
        if reading == "pair":
            pairs = torch.minimum(torch.arange(len(twins), device=twins.device), twins)
            return supervised_contrastive(z, pairs, tau)
        loss = supervised_contrastive(z, labels, tau)
        if twin_weight == 1:
            return loss
        z = F.normalize(z, dim=-1)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        q = (z @ z.T / tau).masked_fill(itself, -torch.inf).softmax(dim=-1).gather(1, twins[:, None])[:, 0]
        anchors = (labels[:, None] == labels).sum(dim=1) > 1
        return loss + ((twin_weight - 1) * q[anchors]).log1p().sum() / anchors.sum().clamp_min(1)


def twin_cosine(features: Tensor, twins: Tensor) -> float:
    """Compute the mean cosine between rows (B, D) and their twins (B,); rows without a twin take no part.

    nan where no row has one.
    """
    paired = twins != torch.arange(len(twins), device=twins.device)
    rows = wide(features.detach())
    return float(F.cosine_similarity(rows, rows[twins], dim=-1)[paired].mean())


def contrast_diagnostics(
    features: Tensor, labels: Tensor, twins: Tensor, sources: Sequence[int] | np.ndarray | None = None
) -> dict[str, float]:
    """Compute what shows that the stage went the right way, on held-out pictures.

    ``twin_cosine`` falls and ``probe_auc``, of a linear probe that tells edits from photographs, rises with `label`.
    nan stands for what cannot be told: no twins, or too few photographs for the probe's five folds.

    Args:
        features: (B, D) of the tower, before the projector.
        labels: (B,) 0 real, 1 edited.
        twins: as for :func:`contrastive_loss`.
        sources: (B,) number of each picture's photograph, for the probe's folds; None takes them from `twins`.
    """
    if sources is None:
        sources = torch.minimum(torch.arange(len(twins), device=twins.device), twins).cpu().numpy()
    try:
        auc = probe_auc(features, labels, sources)
    except UserError:  # something to look at is no reason to end a run
        auc = math.nan
    return {"twin_cosine": twin_cosine(features, twins), "probe_auc": auc}


def _gather_twins(twins: Tensor) -> Tensor:
    """Return the twins' rows among the rows of all processes, where those of earlier processes come first."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    owner = gather_rows(torch.full_like(twins, rank))
    return gather_rows(twins + (owner < rank).sum())
