"""How well a model's features separate classes, on clean pictures and on augmented ones.

For "Effectiveness of Data Augmentation for Parameter Efficient Tuning with Limited Data", arXiv 2303.02577, which
compares embeddings of augmented data between tuning methods. Reconstructed: the definitions are ours. Features
f (N, e) of N samples, each scaled to length 1, with labels y (N,), C classes of n_c samples, class means μ_c, mean μ::

    S_F        = tr(S_B) / tr(S_W) = Σ_c n_c ‖μ_c - μ‖² / Σ_i ‖f_i - μ_y(i)‖²       chance: (C - 1) / (N - C)
    silhouette = mean over i of (b_i - a_i) / max(a_i, b_i)                          in [-1, 1], cosine distance
                 a_i: mean distance to the others of i's class, b_i: to the nearest other class; 0 where i is alone
    margin     = mean over pairs of classes of ‖μ_c - μ_d‖ / mean over i of ‖f_i - μ_y(i)‖
    knn        = accuracy of the vote of the k nearest (cosine) of an index of training features
    probe      = accuracy of a linear classifier trained on the index
    drop       = value on clean features - value on augmented ones; consistency = mean cosine of f(x) and f(aug x)

The features must be those that the head is fed with. Report the frozen backbone's values beside them as the zero line.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ..errors import UserError


def separation(features: Tensor, labels: Tensor, index: Tensor, index_labels: Tensor, k: int = 20) -> dict[str, float]:
    """Compute all values of one set of features.

    Args:
        features: (N, e) of held-out samples.
        labels: (N,) int64.
        index: (M, e) training features, for k-NN and the probe.
        index_labels: (M,) int64.
        k: neighbours that vote.

    Raises:
        UserError: shapes that do not fit, values that are not finite, or fewer than two classes.
    """
    return {
        "fisher": fisher_ratio(features, labels),
        "silhouette": silhouette(features, labels),
        "margin": margin(features, labels),
        "knn": knn_accuracy(features, labels, index, index_labels, k),
        "probe": probe_accuracy(features, labels, index, index_labels),
    }


def separation_under(
    clean: Tensor, augmented: Mapping[str, Tensor], labels: Tensor, index: Tensor, index_labels: Tensor, k: int = 20
) -> dict[str, dict[str, float]]:
    """Compute ``clean`` -> values, and strength -> values, their drops (``drop/fisher``, …) and the consistency.

    Args:
        clean: (N, e) of held-out samples.
        augmented: strength, such as ``heavy`` -> (N, e) of the same samples in the same order.
        labels: (N,) int64.
        index: (M, e) training features.
        index_labels: (M,) int64.
        k: neighbours that vote.

    Raises:
        UserError: as for :func:`separation`.
    """
    result = {"clean": separation(clean, labels, index, index_labels, k)}
    for strength, features in augmented.items():
        values = separation(features, labels, index, index_labels, k)
        drops = {f"drop/{name}": drop for name, drop in drops_of(result["clean"], values).items()}
        result[strength] = values | drops | {"consistency": consistency(clean, features)}
    return result


def fisher_ratio(features: Tensor, labels: Tensor) -> float:
    """Compute S_F; infinite where every sample lies on its class mean."""
    features, classes, means = _grouped(features, labels)
    between = (means - features.mean(dim=0))[classes].square().sum()
    return float(between / (features - means[classes]).square().sum())


def silhouette(features: Tensor, labels: Tensor) -> float:
    """Compute the mean silhouette with cosine distance by class sums: 1 - cos is linear, so no (N, N) matrix."""
    features, classes, means = _grouped(features, labels)
    counts = classes.bincount().to(features)
    distances = 1 - features @ means.T  # to every sample of a class, itself included, on average
    own = distances.gather(1, classes[:, None])[:, 0]
    sizes = counts[classes]
    inside = own * sizes / (sizes - 1).clamp(min=1)
    outside = distances.scatter(1, classes[:, None], torch.inf).amin(dim=1)
    value = (outside - inside) / torch.maximum(inside, outside)
    return float(torch.where(sizes > 1, value.nan_to_num(nan=0.0), 0.0).mean())


def margin(features: Tensor, labels: Tensor) -> float:
    """Compute the mean distance between class means over the mean distance of samples to their own."""
    features, classes, means = _grouped(features, labels)
    return float(F.pdist(means).mean() / (features - means[classes]).norm(dim=1).mean())


def knn_accuracy(features: Tensor, labels: Tensor, index: Tensor, index_labels: Tensor, k: int = 20) -> float:
    """Compute the share of samples whose k nearest of the index vote for their class; of classes with as many votes the
    nearer one, by summed cosines, wins. All of the index vote where it is smaller than k.
    """
    features, labels = _checked(features, labels)
    index, index_labels = _checked(index, index_labels)
    cosines, nearest = (features @ index.T).topk(min(k, len(index)), dim=1)
    names, columns = index_labels.unique(return_inverse=True)
    votes = features.new_zeros(len(features), len(names))
    # sums of cosines of two classes with equal votes differ by at most k: they only break ties
    votes.scatter_add_(1, columns[nearest], 1 + cosines / (2 * k + 1))
    return float((names[votes.argmax(dim=1)] == labels).double().mean())


def probe_accuracy(features: Tensor, labels: Tensor, index: Tensor, index_labels: Tensor) -> float:
    """Compute the accuracy of scikit-learn's multinomial logistic regression (C = 1), trained on the index."""
    features, labels = _checked(features, labels)
    index, index_labels = _checked(index, index_labels)
    _classes(index_labels)
    probe = LogisticRegression(max_iter=1000).fit(index.cpu().numpy(), index_labels.cpu().numpy())
    return float(probe.score(features.cpu().numpy(), labels.cpu().numpy()))


def consistency(clean: Tensor, augmented: Tensor) -> float:
    """Compute the mean cosine between the features (N, e) of samples and of their augmented versions (N, e)."""
    if clean.shape != augmented.shape:
        shapes = f"{tuple(clean.shape)} and {tuple(augmented.shape)}"
        raise UserError(f"clean and augmented features have shapes {shapes}: give those of the same samples.")
    return float(F.cosine_similarity(clean.double(), augmented.double(), dim=1).mean())


def drops_of(clean: Mapping[str, float], augmented: Mapping[str, float]) -> dict[str, float]:
    """Subtract the augmented from the clean value of each quantity."""
    return {name: clean[name] - augmented[name] for name in clean}


def _grouped(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Group by class: unit features (N, e), classes numbered from 0 (N,), and class means (C, e)."""
    features, labels = _checked(features, labels)
    _, classes = _classes(labels)
    sums = features.new_zeros(int(classes.max()) + 1, features.shape[1]).index_add_(0, classes, features)
    return features, classes, sums / classes.bincount()[:, None]


def _checked(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Check features and labels, and normalise the features to unit length in float64."""
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        shapes = f"{tuple(features.shape)} and {tuple(labels.shape)}"
        raise UserError(f"features and labels have shapes {shapes}: give (N, e) and (N,).")
    if not features.isfinite().all():
        raise UserError("features are not finite: the model that made them diverged.")
    return F.normalize(features.detach().double(), dim=1), labels.to(features.device)


def _classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Index the classes: the labels that occur (C,), and each sample's place among them (N,)."""
    names, classes = labels.unique(return_inverse=True)
    if len(names) < 2:
        raise UserError("features of fewer than two classes: separation needs at least two.")
    return names, classes
