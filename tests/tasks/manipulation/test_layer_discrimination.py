import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from vision_lowrank.errors import UserError
from vision_lowrank.tasks.manipulation.layer_discrimination import choose_layer, entropy, probe_auc, separability

LAYERS, WIDTH = 5, 6


def states_of(m=200, shifted=3, shift=2.0):
    """Noise with a class shift in layer `shifted`, and the labels; neighbours are twins."""
    labels = torch.arange(m) % 2
    states = torch.randn(m, LAYERS, WIDTH, dtype=torch.float64)
    states[:, shifted - 1] += shift * labels[:, None]
    return states, labels


@pytest.mark.parametrize("criterion", ["discrimination", "kl", "ldr", "entropy", "probe"])
@pytest.mark.parametrize("layer", [1, 4])
def test_the_layer_with_the_shift_wins(layer, criterion):
    # two far classes also concentrate a standardised channel: its histogram has two narrow peaks
    states, labels = states_of(shifted=layer, shift=8.0)
    choice = choose_layer(states, labels, criterion=criterion)
    assert (choice.layer, choice.criterion) == (layer, criterion)
    assert [row.layer for row in choice.table] == [1, 2, 3, 4, 5]
    assert json.loads(json.dumps(asdict(choice)))["table"][layer - 1]["probe"] > 0.99


def test_terms_are_those_of_the_card():
    states, labels = states_of(shift=1.0)
    states *= torch.rand(LAYERS, WIDTH).double() + 0.5
    states[:3] *= 9  # some values lie outside the histograms
    table = choose_layer(states, labels).table
    for number, row in enumerate(table):
        u = states[:, number].numpy()
        real, edited = u[labels == 0], u[labels == 1]
        v0, v1, gap = real.var(0) + 1e-6, edited.var(0) + 1e-6, real.mean(0) - edited.mean(0)
        assert row.kl == pytest.approx(np.mean(np.log(v1 / v0) + (v0 + gap**2) / v1 - 1) / 2)
        assert row.ldr == pytest.approx(np.mean(gap**2 / (v0 + v1)))
        histograms = [np.histogram(stats.zscore(u[:, c]), bins=30, range=(-4, 4))[0] for c in range(WIDTH)]
        assert row.entropy == pytest.approx(np.mean([stats.entropy(h) for h in histograms]))
    columns = {name: stats.zscore([getattr(row, name) for row in table]) for name in ("kl", "ldr", "entropy")}
    expected = columns["kl"] + columns["ldr"] - columns["entropy"]
    assert [row.score for row in table] == pytest.approx(expected)


def test_a_normal_channel_has_the_normal_distributions_entropy():
    normal = torch.randn(200_000, 2, dtype=torch.float64)
    expected = stats.entropy(np.diff(stats.norm.cdf(np.linspace(-4, 4, 31))))
    assert entropy(normal) == pytest.approx(expected, abs=1e-3)
    assert entropy(torch.full((9, 3), 0.1, dtype=torch.float64)) == 0
    assert entropy(torch.tensor([[1.0], [-1.0]]).double()) == pytest.approx(np.log(2))


def test_a_channel_that_never_varies_says_nothing():
    dead = torch.ones(20, 1, dtype=torch.float64)
    assert separability(dead, dead) == (0.0, 0.0)
    assert separability(dead, dead + 1e-3) == pytest.approx((0.5, 0.5))


def test_an_affine_rescale_of_a_layer_changes_no_term():
    states, labels = states_of(shift=1.0)
    scales = torch.tensor([1.0, 100.0, 0.1, -3.0, 20.0]).double()
    rescaled = states * scales[:, None] + 5 * torch.randn(LAYERS, WIDTH).double()
    for one, two in zip(choose_layer(states, labels).table, choose_layer(rescaled, labels).table, strict=True):
        for name in ("kl", "ldr", "entropy", "probe"):
            assert getattr(two, name) == pytest.approx(getattr(one, name), abs=1e-3), name


def test_equal_classes_are_not_told_apart():
    same = torch.randn(50, 4, dtype=torch.float64)
    assert separability(same, same.flip(0)) == pytest.approx((0.0, 0.0), abs=1e-12)
    states = same.repeat_interleave(2, dim=0)[:, None].repeat(1, 3, 1)
    choice = choose_layer(states, torch.arange(100) % 2, sources=np.arange(100) // 2)
    assert choice.layer == 1
    assert [row.score for row in choice.table] == [0, 0, 0]  # layers that are all alike have no z-scores
    assert all(row.probe == pytest.approx(0.5) for row in choice.table)


def test_the_probe_takes_the_lowest_of_near_layers():
    states, labels = states_of(shifted=4, shift=8.0)
    states[:, 1] = states[:, 3]
    states[0, 1] = states[1, 1]  # one real picture looks edited: a little worse, by less than 0.01
    choice = choose_layer(states, labels, criterion="probe")
    assert 0.99 < choice.table[1].probe < choice.table[3].probe
    assert choice.layer == 2


def test_the_probe_is_a_logistic_regression_held_out():
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(2000) % 2
    x = torch.randn(2000, 3, generator=generator).double()
    x[:, 0] += labels
    fitted = LogisticRegression().fit(x[:1000], labels[:1000])
    expected = roc_auc_score(labels[1000:], fitted.decision_function(x[1000:]))
    assert probe_auc(x, labels) == pytest.approx(expected, abs=0.03)
    assert probe_auc(x * torch.tensor([1e3, 1.0, 1e-3]), labels) == pytest.approx(probe_auc(x, labels), abs=1e-6)
    assert probe_auc(x, 2 * labels) == probe_auc(x, labels)  # synthetic pictures count as edited


def test_sources_stay_in_one_fold():
    # copies of 100 photographs with labels of chance: only a probe that saw a copy can know the label
    sources = torch.arange(100).repeat_interleave(4)
    photographs = torch.randn(100, 150, dtype=torch.float64)[sources]
    labels = (torch.randperm(100) % 2)[sources]
    assert probe_auc(photographs, labels) == 1.0
    assert probe_auc(photographs, labels, sources.numpy()) < 0.75


def test_bad_input_is_named():
    states, labels = states_of(20)
    with pytest.raises(UserError, match=r"shapes \(20, 6\) and \(20,\): give \(m, L, d\) and \(m,\)"):
        choose_layer(states[:, 0], labels)
    with pytest.raises(UserError, match="edited pictures of 0 photographs, too few for 5 folds"):
        choose_layer(states, torch.zeros(20))
    with pytest.raises(UserError, match="real pictures of 2 photographs, too few"):
        choose_layer(states, labels, sources=np.arange(20) // 2 % 2)
    states[3, 2, 0] = torch.nan
    with pytest.raises(UserError, match="layer 3 are not finite"):
        choose_layer(states, labels)
