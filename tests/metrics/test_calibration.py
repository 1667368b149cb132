import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import log_loss, roc_auc_score

from vision_lowrank.errors import ArtefactError, UserError
from vision_lowrank.metrics import calibration as module
from vision_lowrank.metrics.calibration import Calibration, calibration_report


def validation(reals=300, edits=300, scale=4.0, seed=0, decimals=None):
    """Logits that are `scale` times too sure: sigmoid(logits / scale) is the true probability up to the mix."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [reals, edits])
    logits = scale * rng.normal(2 * labels - 1, np.sqrt(2))
    return torch.from_numpy(logits if decimals is None else logits.round(decimals)), torch.from_numpy(labels)


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
def test_temperature_is_the_minimum_of_the_likelihood(scale):
    logits, labels = validation(scale=scale)
    found = Calibration.fit(logits, labels).temperature

    def loss(beta):  # convex in 1 / T
        return log_loss(labels, expit(beta * logits.numpy()))

    best = minimize_scalar(loss, bounds=(1 / 20, 1 / 0.05), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(1 / best.x, rel=1e-4)
    assert found == pytest.approx(scale, rel=0.2)
    assert loss(1 / found) <= min(loss(1.0), best.fun + 1e-9)


def test_temperature_keeps_the_auc_and_lowers_the_likelihood_and_calibration_error():
    logits, labels = validation()
    calibration = Calibration.fit(logits, labels)
    p = calibration.probability(logits)
    assert p.dtype == torch.float64
    assert roc_auc_score(labels, p) == roc_auc_score(labels, logits)
    report = calibration_report(logits, labels, calibration)
    assert report["nll_before"] == pytest.approx(log_loss(labels, expit(logits.numpy())))
    assert report["nll_after"] == pytest.approx(log_loss(labels, p))
    assert report["nll_after"] < report["nll_before"]
    assert report["ece_after"] < report["ece_before"] / 2
    assert report["brier_after"] < report["brier_before"]
    low, high = calibration.uncertain
    assert report["uncertain"] == pytest.approx(((p >= low) & (p < high)).double().mean().item())


def test_temperature_stays_in_its_range_and_needs_both_classes():
    separable = torch.tensor([-3.0, -2.0, 2.0, 3.0])
    assert Calibration.fit(separable, torch.tensor([0, 0, 1, 1])).temperature == pytest.approx(0.05, rel=1e-5)
    assert Calibration.fit(separable, torch.tensor([1, 1, 0, 0])).temperature == pytest.approx(20, rel=1e-5)
    assert Calibration.fit(separable, torch.ones(4)).temperature == 1.0


@pytest.mark.parametrize("decimals", [None, 0])  # 0: dozens of pictures share each logit
@pytest.mark.parametrize("fpr", [0.001, 0.01, 0.05, 0.29, 0.5])
@pytest.mark.parametrize("reals", [100, 257])
def test_thresholds_keep_the_false_positive_rate_and_are_the_lowest_that_do(reals, fpr, decimals):
    logits, labels = validation(reals=reals, decimals=decimals)
    found = Calibration.fit(logits, labels).at(fpr)
    p = np.sort(found.probability(logits[labels == 0]).numpy())
    alarms = int((p >= found.threshold).sum())
    assert alarms / reals <= fpr
    barred = p[p < found.threshold].max()
    assert (p >= barred).mean() > fpr  # any lower threshold would let too many in
    assert found.origin == f"fpr={fpr:g} on {reals} real validation pictures"
    exact = binomtest(alarms, reals).proportion_ci(0.95, method="exact")
    assert found.interval == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_equal_scores_of_all_real_pictures_raise_no_alarm():
    logits = torch.cat([torch.full((150,), 60.0), torch.full((50,), 90.0)])  # sigmoid is 1 for all
    found = Calibration.fit(logits, (logits > 60).long())
    assert found.threshold > 1 or not (found.probability(logits) >= found.threshold)[:150].any()


def test_the_band_lies_between_five_and_one_percent():
    logits, labels = validation()
    found = Calibration.fit(logits, labels)
    low, high = found.uncertain
    assert (low, high) == (found.at(0.05).threshold, found.at(0.01).threshold)
    assert low == found.threshold < high
    below, above = np.nextafter(low, 0), np.nextafter(high, 0)
    assert [found.verdict(p) for p in (below, low, above, high)] == ["real", "uncertain", "uncertain", "edited"]
    asked = found.at(0.05)
    assert asked.uncertain is None
    assert [asked.verdict(p) for p in (below, low)] == ["real", "edited"]
    given = found.fixed(0.7)
    assert (given.threshold, given.uncertain, given.origin) == (0.7, None, "0.7: given")
    assert given.verdict(0.7) == "edited"
    assert found.fixed(0).interval[1] == 1  # every real picture alarms
    assert found.fixed(1).interval[0] == 0


def test_few_real_pictures_give_one_half_and_say_so():
    logits, labels = validation(reals=99)
    found = Calibration.fit(logits, labels)
    assert (found.threshold, found.uncertain) == (0.5, None)
    assert found.origin == "0.5: fewer than 100 real validation pictures (99)"
    assert found.at(0.01) == found
    assert found.temperature != 1.0
    none = Calibration.fit(torch.tensor([1.0, 2.0]), torch.tensor([1, 1]))
    assert (none.interval, none.reals, none.edits, none.threshold) == (None, 0, 2, 0.5)


def test_many_real_pictures_are_kept_as_quantiles_that_err_towards_fewer_alarms():
    logits, labels = validation(reals=7001, edits=500)
    found = Calibration.fit(logits, labels)
    p = found.probability(logits[labels == 0]).numpy()
    assert (len(found.real_scores), found.reals) == (2000, 7001)
    ranks = [-(-i * 7001 // 2000) for i in range(1, 2001)]
    assert found.real_scores == tuple(np.sort(p)[np.array(ranks) - 1])
    for fpr in (0.001, 0.01, 0.05, 0.3):
        share = (p >= found.at(fpr).threshold).mean()
        assert fpr - 2 / 2000 <= share <= fpr


def test_dict_round_trip_through_json(tmp_path):
    logits, labels = validation()
    for each in (Calibration.fit(logits, labels), Calibration(), Calibration.fit(logits, labels).fixed(0.25)):
        assert Calibration.from_dict(json.loads(json.dumps(each.to_dict()))) == each
    tree = Calibration.fit(logits, labels).to_dict()
    for damage in ({"temperature": 0}, {"uncertain": [0.1]}, {"real_scores": [0.5]}, {"reals": "x"}, {"more": 1}):
        with pytest.raises(ArtefactError, match="calibrate again"):
            Calibration.from_dict(tree | damage)
    del tree["origin"]
    with pytest.raises(ArtefactError, match="origin"):
        Calibration.from_dict(tree)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="1 of 2 logits are not finite"):
        Calibration.fit([1.0, float("inf")], [0, 1])
    with pytest.raises(UserError, match="one of each"):
        Calibration.fit([1.0], [0, 1])
    with pytest.raises(UserError, match="such as fpr="):
        Calibration().at(1.5)
    with pytest.raises(UserError, match="probability"):
        Calibration().fixed(1.5)
    with pytest.raises(UserError, match="no pictures"):
        calibration_report([], [], Calibration())


def test_labels_of_synthetic_pictures_count_as_edited():
    logits, labels = validation()
    assert Calibration.fit(logits, labels * 2) == Calibration.fit(logits.numpy(), labels.numpy())


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (3, 10), (10, 10)])
def test_binomial_interval_equals_scipys_exact_one(hits, total):
    exact = binomtest(hits, total).proportion_ci(0.9, method="exact")
    assert module.binomial_interval(hits, total, 0.9) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_the_sigmoid_is_scipys_to_the_last_bit():
    rng = np.random.default_rng(0)
    ends = [0.0, -0.0, 709.0, 710.0, -709.0, -710.0, -746.0, 1e308, -1e308, np.inf, -np.inf]
    values = np.concatenate([*(rng.normal(0, width, 2000) for width in (0.1, 1, 30, 300)), ends])
    assert np.array_equal(module.expit(values), expit(values))
    assert np.isnan(module.expit([np.nan])).all()
    assert module.expit(values.reshape(-1, 1)[:4]).shape == (4, 1)
