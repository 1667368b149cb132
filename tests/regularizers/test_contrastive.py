import math

import pytest
import torch
import torch.nn.functional as F

from vision_lowrank.regularizers.base import Observed
from vision_lowrank.regularizers.contrastive import SupervisedContrastive, contrastive_loss

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def by_hand(features, labels, tau):
    """The definition, written as loops."""
    z = [row / row.norm() for row in features]
    total, anchors = 0.0, 0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if positives:
            below = sum(torch.exp(z[i] @ z[a] / tau) for a in others)
            total -= sum(torch.log(torch.exp(z[i] @ z[p] / tau) / below) for p in positives) / len(positives)
            anchors += 1
    return total / anchors


def penalise(logits, features, labels, **options):
    penalty = SupervisedContrastive(**options).start()
    penalty.observe(Observed(logits, features, labels, None, None, None))
    return penalty.extra_losses()


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_it_is_the_definition(tau):
    features = rand(7, 5)
    torch.testing.assert_close(contrastive_loss(features, LABELS, tau), by_hand(features, LABELS, tau))


def test_order_of_rows_and_length_of_features_do_not_matter():
    features, order = rand(7, 5), torch.randperm(7)
    expected = contrastive_loss(features, LABELS)
    torch.testing.assert_close(contrastive_loss(features[order], LABELS[order]), expected)
    torch.testing.assert_close(contrastive_loss(features * torch.rand(7, 1).add(0.1), LABELS), expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_without_positives_contribute_nothing(rows):
    features = rand(rows, 5).requires_grad_()
    value = contrastive_loss(features, torch.arange(rows))
    value.backward()
    assert value == 0
    assert not features.grad.any()


def test_an_anchor_without_positives_is_still_a_negative():
    features = rand(3, 5)
    labels = torch.tensor([0, 0, 1])
    z = F.normalize(features, dim=-1)
    pair, left, right = (torch.exp(z[i] @ z[j] / 0.1) for i, j in ((0, 1), (0, 2), (1, 2)))
    expected = -(torch.log(pair / (pair + left)) + torch.log(pair / (pair + right))) / 2
    torch.testing.assert_close(contrastive_loss(features, labels), expected)


def test_with_the_twin_view_alone_it_is_nt_xent():
    one, two = rand(4, 5), rand(4, 5)
    z = F.normalize(torch.cat([one, two]), dim=-1)
    similarity = (z @ z.T / 0.1).fill_diagonal_(-math.inf)
    expected = F.cross_entropy(similarity, torch.arange(8).roll(4))
    value = contrastive_loss(torch.cat([one, two]), torch.arange(4).repeat(2))
    torch.testing.assert_close(value, expected)


def test_equal_features_give_the_logarithm_of_the_number_of_others():
    value = contrastive_loss(torch.ones(8, 5, dtype=torch.float64), torch.arange(4).repeat(2))
    assert value.item() == pytest.approx(math.log(7))


def test_it_falls_as_a_positive_pair_comes_closer():
    features = torch.eye(4, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 2])
    values = []
    for angle in (1.5, 1.0, 0.5, 0.1):
        features[1] = torch.tensor([math.cos(angle), math.sin(angle), 0, 0])
        values.append(contrastive_loss(features, labels).item())
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_soft_positives_of_single_classes_are_the_hard_ones():
    features = rand(7, 5)
    one_hot = F.one_hot(LABELS).double()
    expected = contrastive_loss(features, LABELS)
    torch.testing.assert_close(contrastive_loss(features, one_hot, soft_positives=True), expected)
    torch.testing.assert_close(contrastive_loss(features, one_hot), expected)
    torch.testing.assert_close(contrastive_loss(features, LABELS, soft_positives=True), expected)


def test_soft_positives_weigh_pairs_by_their_common_classes():
    features, labels = rand(5, 4), rand(5, 3).softmax(-1)
    z, total = F.normalize(features, dim=-1), 0.0
    for i in range(5):
        others = [a for a in range(5) if a != i]
        below = sum(torch.exp(z[i] @ z[a] / 0.1) for a in others)
        weights = {a: labels[i] @ labels[a] for a in others}
        each = sum(w * torch.log(torch.exp(z[i] @ z[a] / 0.1) / below) for a, w in weights.items())
        total -= each / sum(weights.values()) / 5
    torch.testing.assert_close(contrastive_loss(features, labels, soft_positives=True), total)


def test_mixed_rows_are_left_out_otherwise():
    features = rand(7, 5)
    labels = F.one_hot(LABELS).double()
    labels[2] = torch.tensor([0.6, 0.4, 0, 0])
    rest = [0, 1, 3, 4, 5, 6]
    torch.testing.assert_close(contrastive_loss(features, labels), contrastive_loss(features[rest], LABELS[rest]))


@pytest.mark.parametrize("labels", [LABELS, F.one_hot(LABELS).double()])
def test_with_the_task_s_loss_it_gives_the_weighted_mean(labels):
    logits, features, w = rand(7, 4), rand(7, 5), 0.3
    own = F.cross_entropy(logits, labels)
    (extra,) = penalise(logits, features, labels, w=w).values()
    torch.testing.assert_close(own + extra, (1 - w) * own + w * contrastive_loss(features, labels))


def test_w_0_adds_nothing_and_w_1_leaves_the_head_without_gradient():
    features, W = rand(7, 5).requires_grad_(), rand(4, 5).requires_grad_()
    logits = features @ W.T
    assert penalise(logits, features, LABELS, w=0.0) == {}
    (F.cross_entropy(logits, LABELS) + penalise(logits, features, LABELS, w=1.0)["contrastive"]).backward()
    assert not W.grad.any()
    assert features.grad.abs().sum() > 0


def test_it_does_not_suffer_from_autocast():
    logits, features = torch.randn(7, 4), torch.randn(7, 5)
    expected = penalise(logits, features, LABELS)["contrastive"]
    with torch.autocast("cpu", torch.bfloat16):
        value = penalise(logits, features, LABELS)["contrastive"]
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
