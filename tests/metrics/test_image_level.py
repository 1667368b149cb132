import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import binary_calibration_error

from vision_lowrank.errors import UserError
from vision_lowrank.metrics import image_level as ours


def scored(n=400, share=0.8, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    edited = rng.random(n) < share
    scores = np.clip(rng.normal(0.35 + 0.3 * edited, 0.2), 0, 1)
    return (np.round(scores, 1) if ties else scores), edited


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_both_mixes_equal_scikit_learn(ties, threshold):
    s, y = scored(ties=ties)
    found, called = ours.detection_report(s, y, threshold), s >= threshold
    equal = np.where(y, 1 / y.sum(), 1 / (~y).sum())
    for prefix, weights in (("", None), ("equal_mix/", equal)):
        want = {
            "accuracy": sk.accuracy_score(y, called, sample_weight=weights),
            "precision": sk.precision_score(y, called, sample_weight=weights),
            "f1": sk.f1_score(y, called, sample_weight=weights),
            "ap": sk.average_precision_score(y, s, sample_weight=weights),
            "brier": sk.brier_score_loss(y, s, sample_weight=weights),
        }
        assert {name: found[prefix + name] for name in want} == pytest.approx(want, rel=1e-12)
    assert found["recall"] == pytest.approx(sk.recall_score(y, called))
    assert found["false_alarm_rate"] == pytest.approx(called[~y].mean())
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, called))
    assert found["auc"] == pytest.approx(sk.roc_auc_score(y, s), rel=1e-12)
    fpr, tpr, _ = sk.roc_curve(y, s, drop_intermediate=False)
    assert found["tpr_at_fpr_1"] == pytest.approx(tpr[fpr <= 0.01].max())
    assert found["tpr_at_fpr_5"] == pytest.approx(tpr[fpr <= 0.05].max())


def test_equal_mix_is_the_mean_over_draws_of_as_many_edits_as_real_pictures():
    s, y = scored(200)
    rng, reals = np.random.default_rng(1), np.flatnonzero(~y)
    draws = []
    for _ in range(2000):
        rows = np.concatenate([reals, rng.choice(np.flatnonzero(y), len(reals), replace=False)])
        draws.append((((s[rows] >= 0.5) == y[rows]).mean(), ((s[rows] - y[rows]) ** 2).mean()))
    found = ours.detection_report(s, y)
    assert (found["equal_mix/accuracy"], found["equal_mix/brier"]) == pytest.approx(np.mean(draws, axis=0), abs=3e-3)


def test_auc_is_the_rank_statistic_with_ties_half():
    s, y = scored(80)
    pairs = s[y][:, None] - s[~y][None]
    assert ours.roc_auc(s, y) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), rel=1e-12)
    assert ours.roc_auc(np.full(80, 0.3), y) == 0.5  # exactly


def test_one_alarm_in_a_hundred_is_allowed_at_one_percent():
    s, y = np.append(np.arange(100) / 200, [0.496, 0.6]), np.arange(102) >= 100
    assert ours.recall_at(s, y, 0.01) == 1  # one real picture has 0.495
    assert ours.recall_at(np.where(s == 0.495, 0.7, s), y, 0.01) == 1
    assert ours.recall_at(np.where(np.isin(s, [0.49, 0.495]), 0.55, s), y, 0.01) == 0.5


def test_nothing_depends_on_the_order_of_pictures():
    s, y = scored()
    order = np.random.default_rng(2).permutation(len(s))
    assert ours.detection_report(s[order], y[order]) == pytest.approx(ours.detection_report(s, y), rel=1e-12)


def test_calibration_error_equals_torchmetrics_and_hand():
    s, y = scored(ties=False)
    want = binary_calibration_error(torch.from_numpy(s), torch.from_numpy(y).long(), n_bins=15, norm="l1")
    assert ours.detection_report(s, y)["ece"] == pytest.approx(want.item(), rel=1e-6)
    assert ours.expected_calibration_error([0.0, 1.0, 1.0, 1.0], [0, 1, 1, 0]) == pytest.approx(0.75 / 3)
    mean, share, mass = ours.reliability([0.1, 0.12, 0.9], [0, 1, 1], bins=2)
    assert (mean.tolist(), share.tolist(), mass.tolist()) == ([0.11, 0.9], [0.5, 1.0], pytest.approx([2 / 3, 1 / 3]))


@pytest.mark.parametrize(("label", "reason"), [(1, "no real pictures"), (0, "no edited pictures")])
def test_a_single_class_gives_none_with_a_reason(label, reason):
    found = ours.detection_report([0.2, 0.7], [label, label])
    assert ours.missing([label, label]) == reason
    undefined = {"auc", "balanced_accuracy", "f1", "precision", "ap", "tpr_at_fpr_1", "equal_mix/brier"}
    assert all(found[name] is None for name in undefined)
    assert found["accuracy"] == 0.5
    assert found["recall" if label else "false_alarm_rate"] == 0.5


def test_no_pictures_give_none_everywhere():
    assert set(ours.detection_report([], []).values()) == {None}
    assert ours.missing([]) == "no pictures"


def test_slices_use_all_real_pictures_and_their_weighted_recall_is_the_whole():
    s, y = scored()
    codes = np.where(y, np.arange(len(y)) % 3, -1)
    slices = ours.slice_report(s, y, codes, ["a", "b", "c", "unused"], threshold=0.6)
    assert list(slices) == ["a", "b", "c"]
    rows = ~y | (codes == 1)
    assert slices["b"]["auc"] == pytest.approx(sk.roc_auc_score(y[rows], s[rows]))
    counts = np.array([entry["count"] for entry in slices.values()])
    recalls = np.array([entry["recall"] for entry in slices.values()])
    assert counts.sum() == y.sum()
    assert (counts @ recalls) / counts.sum() == pytest.approx(ours.detection_report(s, y, 0.6)["recall"], rel=1e-12)
    assert ours.macro_average(slices, "recall") == pytest.approx(recalls.mean())


def test_a_slice_without_a_class_says_why():
    slices = ours.slice_report([0.9, 0.8], [1, 1], [0, 1], ["a", "b"])
    assert slices["a"] == {"recall": 1.0, "auc": None, "count": 1.0, "reason": "no real pictures"}
    only_real = ours.slice_report([0.9, 0.8], [0, 0], [0, -1], ["camera"])
    assert only_real["camera"] == {"recall": None, "auc": None, "count": 0.0, "reason": "no edited pictures"}
    assert ours.macro_average(only_real, "auc") is None


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="one of each"):
        ours.detection_report([0.1], [0, 1])
    with pytest.raises(UserError, match="look for NaN"):
        ours.detection_report([0.1, float("nan")], [0, 1])
    with pytest.raises(UserError, match="edited or not"):
        ours.detection_report([0.1, 0.3], [0, 2])
