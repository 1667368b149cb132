import json
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from vision_lowrank.errors import UserError
from vision_lowrank.metrics.incremental import SessionMatrix, class_counts, incremental_metrics

# The card's case: a = [[90], [80, 60], [70, 50, 40]] percent with equal counts, one class per session.
HAND = SessionMatrix((1, 1, 1), (100, 100, 100), ((90,), (80, 60), (70, 50, 40)), base_only=(90, 85, 80))
CLASSES = (3, 2, 2)


def evaluations(seed=0):
    """Labels, predictions and predictions among base classes after each of three sessions; classes of unequal size."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(7), [5, 9, 4, 8, 3, 6, 7])
    labels, predictions, base = [], [], []
    for seen in (3, 5, 7):
        y = rng.permutation(truth[truth < seen])
        labels.append(torch.from_numpy(y))
        predictions.append(torch.from_numpy(np.where(rng.random(len(y)) < 0.6, y, rng.integers(0, seen, len(y)))))
        base.append(torch.from_numpy(rng.integers(0, 3, len(y))))
    return labels, predictions, base


def test_the_cards_case_by_hand():
    found = incremental_metrics(HAND, weights=(0, 0.5, 1))
    want = {
        "session/0/accuracy": 0.9,
        "session/1/accuracy": 0.7,
        "session/2/accuracy": 160 / 300,
        "session/1/harmonic_mean": 2 * 80 * 60 / 140 / 100,
        "session/2/harmonic_mean": 2 * 70 * 45 / 115 / 100,
        "session/2/base_accuracy": 0.7,
        "session/2/new_accuracy": 0.45,
        "last_accuracy": 160 / 300,
        "average_accuracy": (0.9 + 0.7 + 160 / 300) / 3,
        "performance_drop": 0.9 - 160 / 300,
        "harmonic_mean": 2 * 70 * 45 / 115 / 100,
        "average_harmonic_mean": (2 * 80 * 60 / 140 + 2 * 70 * 45 / 115) / 200,
        "forgetting": 0.15,
        "base_forgetting": 0.2,
        "backward_transfer": -0.15,
        "gacc/0": 0.45,
        "gacc/0.5": (0.5 * 0.7 + 2 * 0.45) / 2.5,
        "gacc/1": (0.7 + 0.5 + 0.4) / 3,
        "base_only_accuracy": 0.8,
        "base_only_forgetting": 0.1,
    }
    assert {name: found[name] for name in want} == pytest.approx(want, abs=1e-12)
    assert round(100 * found["average_accuracy"], 2) == 71.11
    assert round(100 * found["performance_drop"], 2) == 36.67
    assert round(100 * found["harmonic_mean"], 2) == 54.78


def test_forgetting_counts_a_gain_as_none_and_backward_transfer_as_a_gain():
    better = SessionMatrix((1, 1, 1), (10, 10, 10), ((5,), (7, 4), (9, 2, 6)))
    found = incremental_metrics(better)
    assert found["forgetting"] == pytest.approx((0 + 0.2) / 2)
    assert found["backward_transfer"] == pytest.approx((0.4 - 0.2) / 2)
    assert found["base_forgetting"] == pytest.approx(-0.4)


def test_session_accuracy_is_the_count_weighted_mean_of_the_matrix():  # invariant 4
    labels, predictions, _ = evaluations()
    matrix = SessionMatrix.from_predictions(CLASSES, labels, predictions)
    sizes = np.array([5 + 9 + 4, 8 + 3, 6 + 7])
    a = matrix.accuracies()
    for t in range(3):
        y, p = labels[t].numpy(), predictions[t].numpy()
        assert matrix.accuracy(t) == pytest.approx((y == p).mean())
        assert matrix.accuracy(t) == pytest.approx(np.average(a[t], weights=sizes[: t + 1]))
    assert matrix.accuracy(0) == a[0][0]


def test_metrics_equal_a_plain_second_computation_from_predictions():
    labels, predictions, base = evaluations(1)
    found = incremental_metrics(SessionMatrix.from_predictions(CLASSES, labels, predictions, base), weights=(0.3,))
    group = np.array([0, 0, 0, 1, 1, 2, 2])
    square = np.zeros((3, 3))  # unseen entries 0, as in LAMDA-PILOT
    for t in range(3):
        y, p = labels[t].numpy(), predictions[t].numpy()
        for i in range(t + 1):
            square[t, i] = (y == p)[group[y] == i].mean()
    y, p, b = labels[2].numpy(), predictions[2].numpy(), base[2].numpy()
    per_class = np.array([(y == p)[y == c].mean() for c in range(7)])
    new = (y == p)[y >= 3].mean()
    want = {
        "forgetting": (square.max(axis=0) - square[2])[:2].mean(),
        "backward_transfer": (square[2] - square.diagonal())[:2].mean(),
        "harmonic_mean": 2 / (1 / square[2, 0] + 1 / new),
        "base_only_accuracy": (y == b)[y < 3].mean(),
        "gacc/0.3": np.average(per_class, weights=[0.3] * 3 + [1] * 4),
    }
    assert {name: found[name] for name in want} == pytest.approx(want, abs=1e-12)


def test_class_accuracies_of_every_session():
    labels, predictions, _ = evaluations(2)
    rows = SessionMatrix.from_predictions(CLASSES, labels, predictions).class_accuracies()
    assert [len(row) for row in rows] == [3, 5, 7]
    for t, row in enumerate(rows):
        y, p = labels[t].numpy(), predictions[t].numpy()
        assert row == pytest.approx([(y == p)[y == c].mean() for c in range(len(row))])


def test_the_area_under_gacc_equals_quadrature():
    labels, predictions, _ = evaluations(3)
    for matrix, session in ((HAND, 1), (HAND, 2), (SessionMatrix.from_predictions(CLASSES, labels, predictions), 2)):
        area, _ = quad(lambda w, m=matrix, t=session: m.gacc(t, w), 0, 1, epsabs=1e-13)
        assert matrix.gacc_auc(session) == pytest.approx(area, abs=1e-12)


def test_full_weight_gacc_is_class_balanced_accuracy_and_none_is_new_classes_only():
    labels, predictions, _ = evaluations(4)
    matrix = SessionMatrix.from_predictions(CLASSES, labels, predictions)
    row = matrix.class_accuracies()[2]
    assert matrix.gacc(2, 1) == pytest.approx(sum(row) / 7)
    assert matrix.gacc(2, 0) == pytest.approx(sum(row[3:]) / 4)


def test_the_harmonic_mean_is_undefined_in_the_base_session():  # invariant 4
    found = incremental_metrics(HAND)
    assert "session/0/harmonic_mean" not in found
    assert all(math.isfinite(value) for value in found.values())
    alone = incremental_metrics(SessionMatrix((2,), (10, 30), ((9, 15),)))
    assert alone == {
        "session/0/accuracy": 0.6,
        "session/0/base_accuracy": 0.6,
        "last_accuracy": 0.6,
        "average_accuracy": 0.6,
    }


def test_nothing_right_gives_zeros_and_never_nan():
    found = incremental_metrics(SessionMatrix((1, 1), (10, 10), ((0,), (0, 0))))
    assert set(found.values()) == {0.0}


def test_results_do_not_depend_on_order_or_batches():  # invariant 7
    labels, predictions, base = evaluations(5)
    want = SessionMatrix.from_predictions(CLASSES, labels, predictions, base)
    shuffles = [torch.randperm(len(y)) for y in labels]
    shuffled = [[x[order] for x, order in zip(each, shuffles, strict=True)] for each in (labels, predictions, base)]
    assert SessionMatrix.from_predictions(CLASSES, *shuffled) == want
    for size in (1, 4, 100):
        batches = [
            class_counts(y, p, 7) for y, p in zip(labels[2].split(size), predictions[2].split(size), strict=True)
        ]
        assert tuple(np.sum([right for right, _ in batches], axis=0)) == want.correct[2]
        assert tuple(np.sum([total for _, total in batches], axis=0)) == want.totals


def test_a_prediction_of_a_class_not_seen_yet_is_wrong():
    assert class_counts(torch.tensor([0, 1, 1]), torch.tensor([0, 6, 1]), 2) == ((1, 1), (1, 2))


def test_json_round_trip_recomputes_every_metric():
    text = json.dumps(HAND.as_json())
    back = SessionMatrix.from_json(json.loads(text))
    assert back == HAND
    assert incremental_metrics(back) == incremental_metrics(HAND)
    assert json.loads(text)["accuracies"] == [[0.9], [0.8, 0.6], [0.7, 0.5, 0.4]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": (1, 0, 2)}, "1 or more"),
        ({"classes": ()}, "1 or more"),
        ({"totals": (100, 100)}, "2 totals.*3 classes"),
        ({"totals": (100, 100, 0)}, "smallest 0"),
        ({"correct": ((90,), (80, 60))}, "2 rows for 3 sessions"),
        ({"correct": ((90,), (80,), (70, 50, 40))}, "row 1 has 1 classes, but 2"),
        ({"correct": ((90,), (80, 101), (70, 50, 40))}, "class 1 has 101 right of 100"),
        ({"correct": ((-1,), (80, 60), (70, 50, 40))}, "class 0 has -1 right"),
        ({"base_only": (1, 2)}, "base_only has 2 of 3"),
        ({"base_only": (1, 2, 101)}, "the 100 base pictures"),
    ],
)
def test_malformed_matrices_are_refused(change, said):
    fields = {"classes": HAND.classes, "totals": HAND.totals, "correct": HAND.correct} | change
    with pytest.raises(UserError, match=said):
        SessionMatrix(**fields)


@pytest.mark.parametrize(
    "change", [{"correct": None}, {"totals": [1.5, 100, 100]}, {"totals": "100"}, {"classes": [True, 1, 1]}]
)
def test_json_of_anything_but_whole_numbers_is_refused(change):
    with pytest.raises(UserError, match="whole numbers"):
        SessionMatrix.from_json(HAND.as_json() | change)
    with pytest.raises(UserError, match="needs `classes`"):
        SessionMatrix.from_json({key: value for key, value in HAND.as_json().items() if key != next(iter(change))})


def test_evaluations_that_do_not_fit_are_refused():
    labels, predictions, _ = evaluations()
    build = SessionMatrix.from_predictions
    with pytest.raises(UserError, match="3 sessions with 2 labels"):
        build(CLASSES, labels[:2], predictions)
    with pytest.raises(UserError, match="1 base predictions"):
        build(CLASSES, labels, predictions, predictions[:1])
    with pytest.raises(UserError, match="same pictures"):
        build(CLASSES, labels, [*predictions[:2], predictions[2][:-1]])
    with pytest.raises(UserError, match="but 3 classes are seen"):
        build(CLASSES, [labels[1], *labels[1:]], [predictions[1], *predictions[1:]])
    with pytest.raises(UserError, match="test pictures after session 0"):
        build(CLASSES, [labels[0][1:], *labels[1:]], [predictions[0][1:], *predictions[1:]])


def test_gacc_where_it_is_undefined_is_refused():
    with pytest.raises(UserError, match="1 to 2"):
        HAND.gacc(0, 0.5)
    with pytest.raises(UserError, match="1 to 2"):
        HAND.gacc_auc(3)
    with pytest.raises(UserError, match=r"outside \[0, 1\]"):
        incremental_metrics(HAND, weights=(1.5,))
