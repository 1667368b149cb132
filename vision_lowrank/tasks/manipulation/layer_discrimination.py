"""Layer Discrimination Selection: at which layer of a frozen model two classes of pictures are told apart best.

For ManipShield (arXiv 2511.14259), which reads its decoders' states at one chosen layer of a multimodal LLM.
Reconstructed: the paper's formula could not be read; the form, three terms per layer, is that of a predecessor
(HiProbe-VAD, arXiv 2507.17394). With u (m, L, d), the states of m pictures averaged over their tokens after layers
1 … L, and per layer and channel c the class means μ0, μ1, the variances v0, v1 (of the population, + 1e-6)::

    KL    = mean_c ½ ( ln(v1 / v0) + (v0 + (μ0 - μ1)²) / v1 - 1 )               sensitivity
    LDR   = mean_c (μ0 - μ1)² / (v0 + v1)                                       separability
    Ent   = mean_c entropy (nats) of the standardised channel's 30-bin histogram on [-4, 4]; values outside are left out
    score = zscore(KL) + zscore(LDR) - zscore(Ent)                              z-scores over layers
    probe = mean over folds of the held-out AUC of a logistic regression on u

The first three do not change when a layer's states are rescaled, so layers of growing norm compare fairly. The card
asks for 256 held-out pictures or more. Layer 0, the embedded picture, takes no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ...errors import UserError

Criterion: TypeAlias = Literal["discrimination", "kl", "ldr", "entropy", "probe"]

BINS, REACH = 30, 4.0
TIE = 0.01  # a cheaper layer is taken where its probe's AUC is within this of the best


@dataclass(frozen=True)
class LayerTerms:
    """What one layer shows.

    Attributes:
        layer: 1 … L.
        kl: KL, in nats.
        ldr: LDR.
        entropy: Ent, in nats.
        score: sum of the three z-scores.
        probe: AUC in [0, 1].
    """

    layer: int
    kl: float
    ldr: float
    entropy: float
    score: float
    probe: float


@dataclass(frozen=True)
class LayerChoice:
    """The outcome; :func:`dataclasses.asdict` makes it ready for JSON.

    Attributes:
        layer: the chosen one, 1 … L.
        criterion: what chose it.
        table: all layers, in order.
    """

    layer: int
    criterion: Criterion
    table: tuple[LayerTerms, ...]


def choose_layer(
    states: Tensor,
    labels: Tensor | Sequence[int],
    sources: Sequence[int] | np.ndarray | None = None,
    criterion: Criterion = "discrimination",
    folds: int = 5,
) -> LayerChoice:
    """Compute all terms of all layers, and choose the layer that the criterion prefers.

    ``discrimination`` takes the highest score, ``kl`` and ``ldr`` the highest of these terms, ``entropy`` the lowest,
    ``probe`` the lowest layer whose AUC is within 0.01 of the best.

    Args:
        states: (m, L, d) pooled states after layers 1 … L, any floating type.
        labels: (m,), 0 = real; all others count as edited.
        sources: (m,) number of the photograph that a picture comes from: twins stay in one fold of the probe.
        criterion: what chooses.
        folds: of the probe.

    Raises:
        UserError: shapes that do not fit, states that are not finite, or fewer photographs of a class than folds.
    """
    edited = torch.as_tensor(labels).cpu() > 0
    if states.dim() != 3 or not states.shape[1] or edited.shape != states.shape[:1]:
        shapes = f"{tuple(states.shape)} and {tuple(edited.shape)}"
        raise UserError(f"layer discrimination: states and labels have shapes {shapes}: give (m, L, d) and (m,).")
    rows = []
    for number in range(states.shape[1]):
        u = states[:, number].detach().cpu().double()
        if not u.isfinite().all():
            raise UserError(f"layer discrimination: states of layer {number + 1} are not finite: the model diverged.")
        probe = probe_auc(u, edited, sources, folds)
        rows.append((*separability(u[~edited], u[edited]), entropy(u), probe))
    kl, ldr, ent, probe = np.asarray(rows).T
    score = _zscore(kl) + _zscore(ldr) - _zscore(ent)
    columns = np.stack([kl, ldr, ent, score, probe], axis=1).tolist()
    table = tuple(LayerTerms(layer, *terms) for layer, terms in enumerate(columns, start=1))
    near_best = (probe >= probe.max() - TIE).astype(float)
    preference = {"discrimination": score, "kl": kl, "ldr": ldr, "entropy": -ent, "probe": near_best}[criterion]
    return LayerChoice(int(preference.argmax()) + 1, criterion, table)


def separability(real: Tensor, edited: Tensor) -> tuple[float, float]:
    """Compute KL and LDR of one layer's states (m0, d) and (m1, d) float64."""
    v0, v1 = (u.var(dim=0, correction=0) + 1e-6 for u in (real, edited))
    squared = (real.mean(dim=0) - edited.mean(dim=0)).square()
    kl = 0.5 * ((v1 / v0).log() + (v0 + squared) / v1 - 1)
    return float(kl.mean()), float((squared / (v0 + v1)).mean())


def entropy(states: Tensor) -> float:
    """Compute Ent of one layer's states (m, d) float64, both classes together; 0 where no channel varies."""
    d = states.shape[1]
    z = (states - states.mean(dim=0)) / states.std(dim=0, correction=0).clamp_min(1e-12)
    inside = z.abs() <= REACH
    places = ((z + REACH) / (2 * REACH) * BINS).long().clamp(0, BINS - 1)  # the last bin holds its right edge too
    places = places + BINS * torch.arange(d)
    counts = torch.bincount(places[inside], minlength=BINS * d).view(d, BINS).double()
    shares = counts / counts.sum(dim=1, keepdim=True)
    return float(torch.special.entr(shares).sum(dim=1).mean())


def probe_auc(
    features: Tensor, labels: Tensor, sources: Sequence[int] | np.ndarray | None = None, folds: int = 5
) -> float:
    """Compute the mean over folds of the AUC, on the held-out fold, of a logistic regression on standardised features.

    Args:
        features: (m, d).
        labels: (m,), 0 = real; all others count as edited.
        sources: (m,) the photograph that a row comes from, never divided between folds; None: each its own.
        folds: how many; they keep the classes' shares as far as sources allow and are always the same.

    Raises:
        UserError: fewer photographs of a class than folds, so that a fold would have none.
    """
    x, y = features.detach().cpu().double().numpy(), (labels.cpu() > 0).numpy()
    groups = np.arange(len(y)) if sources is None else np.asarray(sources)
    for name, own in (("real", ~y), ("edited", y)):
        if (found := len(np.unique(groups[own]))) < folds:
            raise UserError(
                f"linear probe: {name} pictures of {found} photographs, too few for {folds} folds: "
                f"give pictures of {folds} or more, better of hundreds."
            )
    aucs = []
    for train, test in StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(x, y, groups):
        if len(np.unique(y[test])) == 2 == len(np.unique(y[train])):  # few sources of very unequal sizes can fail
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[train], y[train])
            aucs.append(roc_auc_score(y[test], model.decision_function(x[test])))
    return float(np.mean(aucs))


def _zscore(values: np.ndarray) -> np.ndarray:
    """Standardise `values` (L,) to mean 0 and standard deviation 1; zeros where they are all the same."""
    centred = values - values.mean()
    spread = centred.std()
    return centred / spread if spread > 1e-12 else np.zeros_like(values)
