import numpy as np
import pytest
from sklearn import metrics as sk

from vision_lowrank.errors import UserError
from vision_lowrank.metrics.cues import cue_report, cue_targets, most_frequent, tune_thresholds

NAMES = ("shape", "texture", "light", "never", "text")


def annotated(n=60, seed=0):
    """Probabilities with ties, and cues; nobody annotates `never`, and no answer reports it."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 5)) < [0.5, 0.3, 0.7, 0, 0.1]
    p = np.clip(rng.normal(0.35 + 0.3 * truth, 0.2), 0, 1).round(1)
    p[:, 3] *= 0.3
    return p, truth, [tuple(np.array(NAMES)[row]) for row in truth]


def test_all_equal_scikit_learn():
    p, truth, cues = annotated()
    found, called = cue_report(p, cues, NAMES), p >= 0.5
    assert found["cue_micro_f1"] == pytest.approx(sk.f1_score(truth, called, average="micro"))
    macro = sk.f1_score(truth, called, average="macro", zero_division=np.nan)  # leaves `never` out
    assert found["cue_macro_f1"] == pytest.approx(macro)
    kept = truth[:, truth.any(axis=0)]
    assert kept.shape[1] == 4
    want = sk.average_precision_score(kept, p[:, truth.any(axis=0)], average="macro")
    assert found["cue_map"] == pytest.approx(want)
    assert found["cue_hamming"] == pytest.approx(1 - sk.hamming_loss(truth, called))
    assert found["cue_exact"] == pytest.approx(sk.accuracy_score(truth, called))


def test_not_annotated_changes_nothing_and_none_found_does():
    p, _, cues = annotated(20)
    base = cue_report(p, cues, NAMES)
    row = np.full((1, 5), 0.9)
    assert cue_report(np.vstack([p, row]), [*cues, None], NAMES) == base
    more = cue_report(np.vstack([p, row]), [*cues, ()], NAMES)
    assert more["cue_pictures"] == 21
    assert all(more[name] < base[name] for name in base if name != "cue_pictures")


def test_undefined_is_none():
    found = cue_report(np.zeros((2, 5)), [None, None], NAMES)
    assert {name for name, value in found.items() if value is not None} == {"cue_pictures"}
    clean = cue_report(np.zeros((2, 5)), [(), ()], NAMES)
    assert (clean["cue_micro_f1"], clean["cue_map"], clean["cue_exact"]) == (None, None, 1.0)


def test_the_baseline_always_reports_the_most_frequent_cue():
    p, truth, cues = annotated()
    frequent = most_frequent([*cues, None, ()], NAMES)
    assert frequent.tolist() == [0, 0, 1, 0, 0]
    found, called = cue_report(p, cues, NAMES, frequent=frequent), np.tile(frequent > 0, (60, 1))
    assert found["most_frequent/cue_micro_f1"] == pytest.approx(sk.f1_score(truth, called, average="micro"))
    assert found["most_frequent/cue_exact"] == pytest.approx(sk.accuracy_score(truth, called))
    assert found["most_frequent/cue_map"] == pytest.approx(truth[:, [0, 1, 2, 4]].mean())  # constant score: prevalence
    assert found["cue_micro_f1"] == cue_report(p, cues, NAMES)["cue_micro_f1"]
    assert most_frequent([(), None], NAMES).sum() == 0


def test_tuned_thresholds_have_the_best_f1_of_all():
    p, truth, cues = annotated()
    found = tune_thresholds(np.vstack([p, p[:1]]), [*cues, None], NAMES)
    assert found[3] == 0.5
    for column in (0, 1, 2, 4):
        grid = [sk.f1_score(truth[:, column], p[:, column] >= level) for level in np.unique(p[:, column])]
        assert sk.f1_score(truth[:, column], p[:, column] >= found[column]) == pytest.approx(max(grid))
    tuned = cue_report(p, cues, NAMES, found)
    assert tuned["cue_macro_f1"] > cue_report(p, cues, NAMES)["cue_macro_f1"]


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="Did you mean 'texture'"):
        cue_targets([("textur",)], NAMES)
    with pytest.raises(UserError, match=r"\(1, 5\)"):
        cue_report(np.zeros((1, 4)), [()], NAMES)
