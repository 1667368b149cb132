import math

import pytest
import torch
from sklearn.metrics import silhouette_score

from vision_lowrank.analysis.separation import (
    consistency,
    drops_of,
    fisher_ratio,
    knn_accuracy,
    margin,
    probe_accuracy,
    separation,
    separation_under,
    silhouette,
)
from vision_lowrank.errors import UserError

# Two classes of two unit vectors: ±60° around +x and around -x.
SQUARE = torch.tensor([[1.0, math.sqrt(3)], [1.0, -math.sqrt(3)], [-1.0, math.sqrt(3)], [-1.0, -math.sqrt(3)]]).double()
PAIRS = torch.tensor([4, 4, 9, 9])


def clusters(n=60, classes=4, dimension=6, spread=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dimension, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    labels = torch.arange(n) % classes
    return centres[labels] + spread * torch.randn(n, dimension, generator=generator, dtype=torch.float64), labels


def test_fisher_and_margin_by_hand():
    """Class means (±1/2, 0), the mean 0, every sample √3/2 from its class mean, whatever the features' lengths."""
    scaled = SQUARE * torch.tensor([[1.0], [5.0], [0.1], [2.0]])
    assert fisher_ratio(scaled, PAIRS) == pytest.approx((4 * 1 / 4) / (4 * 3 / 4))
    assert margin(scaled, PAIRS) == pytest.approx(1 / (math.sqrt(3) / 2))


def test_silhouette_by_hand():
    """Own class: 1 - cos 120° = 3/2. The other: cosines of 60° and 180°, (1/2 + 2) / 2 = 5/4."""
    assert silhouette(SQUARE, PAIRS) == pytest.approx((5 / 4 - 3 / 2) / (3 / 2))


@pytest.mark.parametrize("spread", [0.1, 0.7, 3.0])
@pytest.mark.parametrize("shuffled", [False, True])
def test_silhouette_equals_scikit_learn(spread, shuffled):
    features, labels = clusters(spread=spread)
    labels = labels.clone()
    labels[0] = 17  # a class of one
    if shuffled:
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    expected = silhouette_score(features.numpy(), labels.numpy(), metric="cosine")
    assert silhouette(features, labels) == pytest.approx(float(expected), abs=1e-12)
    assert -1 <= silhouette(features, labels) <= 1


def test_rotations_change_nothing():
    features, labels = clusters()
    Q, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    for measure in (fisher_ratio, silhouette, margin):
        assert measure(features @ Q, labels) == pytest.approx(measure(features, labels), rel=1e-10)


def test_shuffled_labels_are_at_chance():
    features, labels = clusters(n=2000, spread=1.0)
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    chance = 3 / (2000 - 4)
    assert chance / 3 < fisher_ratio(features, shuffled) < 3 * chance
    assert fisher_ratio(features, labels) > 100 * chance
    assert -0.1 < silhouette(features, shuffled) < 0.01
    assert silhouette(features, labels) > 0.1


def test_neighbours_vote_and_ties_go_to_the_nearer_class():
    index = torch.tensor([[1.0, 0.1], [1.0, -0.3], [0.0, 1.0], [0.1, 1.0]])
    labels = torch.tensor([7, 7, 3, 3])
    samples = torch.tensor([[1.0, 0.0], [1.0, 0.9], [0.9, 1.0]])
    assert knn_accuracy(samples, torch.tensor([7, 7, 3]), index, labels, k=1) == 1
    assert knn_accuracy(samples, torch.tensor([7, 3, 7]), index, labels, k=1) == pytest.approx(1 / 3)
    # all four vote, two against two: the summed cosines decide, though a 7 is nearest to the second sample
    assert knn_accuracy(samples, torch.tensor([7, 3, 3]), index, labels, k=20) == 1


def test_a_majority_beats_a_near_minority():
    index = torch.tensor([[1.0, 0.0], [0.1, 1.0], [0.0, 1.0]])
    assert knn_accuracy(torch.tensor([[1.0, 0.05]]), torch.tensor([1]), index, torch.tensor([0, 1, 1])) == 1


def test_a_probe_finds_what_is_linear_and_not_what_is_not():
    features, labels = clusters(n=200, spread=0.3)
    held, held_labels = clusters(n=100, spread=0.3, seed=1)
    assert probe_accuracy(held, held_labels, features, labels) > 0.95
    shuffled = labels[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    assert probe_accuracy(held, held_labels, features, shuffled) < 0.6


def test_consistency_and_drops_by_hand():
    augmented = torch.tensor([[2.0, 2 * math.sqrt(3)], [1.0, math.sqrt(3)], [-3.0, math.sqrt(3) * 3], [-4.0, 0.0]])
    # angles 0°, 120°, 0°, 60°
    assert consistency(SQUARE, augmented) == pytest.approx((1 - 0.5 + 1 + 0.5) / 4)
    assert drops_of({"knn": 0.75, "margin": 2.0}, {"knn": 0.5, "margin": 2.5}) == {"knn": 0.25, "margin": -0.5}


def test_a_table_of_strengths():
    index, index_labels = clusters(n=80)
    clean, labels = clusters(seed=1)
    heavy = clean + 2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    table = separation_under(clean, {"none": clean, "heavy": heavy}, labels, index, index_labels)
    assert table["clean"] == separation(clean, labels, index, index_labels)
    assert table["none"]["consistency"] == pytest.approx(1)
    assert all(value == 0 for name, value in table["none"].items() if name.startswith("drop/"))
    assert table["heavy"]["drop/fisher"] == table["clean"]["fisher"] - table["heavy"]["fisher"] > 0
    assert table["heavy"]["consistency"] < 0.9


def test_mistakes_are_explained():
    features, labels = clusters()
    with pytest.raises(UserError, match="fewer than two classes"):
        silhouette(features, torch.zeros_like(labels))
    with pytest.raises(UserError, match=r"\(60, 6\) and \(59,\)"):
        fisher_ratio(features, labels[1:])
    with pytest.raises(UserError, match="not finite"):
        margin(features * torch.nan, labels)
    with pytest.raises(UserError, match="of the same samples"):
        consistency(features, features[1:])
