"""Every worked example and invariant of the protocols, by hand-counted numbers."""

import json

import numpy as np
import pytest

from vision_lowrank.data.boxes import Boxes, pairwise_iou
from vision_lowrank.errors import DataError, UserError
from vision_lowrank.metrics.names import is_share, larger_is_better
from vision_lowrank.metrics.tracking.base import Prediction, Truth
from vision_lowrank.metrics.tracking.overlap import (
    bounded_overlaps,
    center_errors,
    normalized_center_errors,
    overlaps,
)
from vision_lowrank.metrics.tracking.score import CONVENTIONS, frames_per_second, score_tracking

TRUTH = np.array([(10, 10, 20, 20), (12, 10, 20, 20), (0, 0, 0, 0), (30, 30, 20, 20)], float)
PREDICTED = np.array([(0, 0, 5, 5), (12, 10, 20, 20), (12, 10, 20, 20), (40, 30, 20, 20)], float)
VISIBLE = np.array([True, True, False, True])


def truth(boxes, visible=None, name="a", **facts):
    boxes = np.asarray(boxes, float)
    return Truth(name, boxes, np.ones(len(boxes), bool) if visible is None else np.asarray(visible), **facts)


def scored(predicted, true, convention, benchmark=""):
    """Values of one run on one sequence, in percent."""
    runs = {true.name: [Prediction(np.asarray(predicted, float), "a.txt")]}
    found = score_tracking(runs, [true], convention, benchmark)
    return {name: 100 * value for name, value in found.overall.values.items()}


def moving(frames=30, seed=0):
    rng = np.random.default_rng(seed)
    corner, sides = rng.uniform(20, 200, (frames, 2)), rng.uniform(10, 60, (frames, 2))
    return np.concatenate([corner, sides], axis=1)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("benchmark", ["lasot", "uav123", "otb100"])
def test_a_perfect_tracker_has_the_known_scores(convention, benchmark):
    boxes = np.round(moving())
    found = scored(boxes, truth(boxes, size=(500, 500)), convention, benchmark)
    expected = dict.fromkeys(found, 100.0)
    if convention in ("pytracking", "pytracking-all", "lasot"):
        expected["success_auc"] = 2000 / 21  # IoU > 1 never holds
        assert found["success_auc"] == pytest.approx(95.238, abs=5e-4)
    assert found == pytest.approx(expected)


# The worked example: overlaps 1, 1, absent, 1/3; errors 0, 0, absent, 10 pixels = half a side.
WORKED = [
    ("pytracking-all", "lasot", (1 + 20 / 21 * 2 + 7 / 21 - 1) / 4, 75, 50),
    ("pytracking-all", "vasttrack", 55.95 / 100, 75, 50),
    ("pytracking-all", "lasot_ext", 55.95 / 100, 75, 75),
    ("pytracking", "lasot", 55.95 / 100, 75, 50),
    ("pytracking", "vasttrack", 74.60 / 100, 100, 100),
    ("pytracking", "lasot_ext", 74.60 / 100, 100, 100),
    ("lasot", "lasot", 55.95 / 100, 75, 50),
]


@pytest.mark.parametrize(("convention", "benchmark", "auc", "precision", "normalized"), WORKED)
def test_the_worked_example(convention, benchmark, auc, precision, normalized):
    found = scored(PREDICTED, truth(TRUTH, VISIBLE), convention, benchmark)
    assert found["success_auc"] == pytest.approx(100 * auc, abs=5e-3)
    assert found["precision"] == pytest.approx(precision)
    assert found["normalized_precision"] == pytest.approx(normalized)
    kept = 3 if convention == "pytracking" and benchmark != "lasot" else 4
    assert found["op50"] == found["op75"] == pytest.approx(200 / kept)


def test_the_worked_example_divided_by_valid_frames_with_lasots_rule_for_absent_targets():
    """No named convention joins the two, the parts do: P_norm 2/3."""
    from vision_lowrank.metrics.tracking.pytracking import frame_errors, scores_of

    predicted = PREDICTED.copy()
    predicted[0] = TRUTH[0]
    *errors, valid = frame_errors(predicted, truth(TRUTH, VISIBLE), "lasot", ("lasot",))
    assert errors[0] == pytest.approx([1, 1, -1, 1 / 3])
    found = scores_of(*errors, frames=int(valid.sum())).values
    assert found["success_auc"] == pytest.approx((20 / 21 * 2 + 7 / 21) / 3)
    assert (found["precision"], found["normalized_precision"]) == pytest.approx((1, 2 / 3))


def test_overlaps_are_those_of_the_inclusive_form_and_of_boxes_everywhere_else():
    assert overlaps(np.array([[0, 0, 10, 10.0]]), np.array([[5, 0, 10, 10.0]])) == pytest.approx(1 / 3)
    one, other = moving(seed=1), moving(seed=2)
    last = np.minimum(*(each[:, :2] + each[:, 2:] - 1 for each in (one, other)))
    both = np.clip(last - np.maximum(one[:, :2], other[:, :2]) + 1, 0, None).prod(axis=1)
    inclusive = both / (one[:, 2:].prod(axis=1) + other[:, 2:].prod(axis=1) - both)
    continuous = np.diag(pairwise_iou(Boxes.from_xywh(one).xyxy, Boxes.from_xywh(other).xyxy))
    assert overlaps(one, other) == pytest.approx(inclusive)
    assert overlaps(one, other) == pytest.approx(continuous)


def test_exactly_half_fails_pytracking_and_passes_trackingnet():
    boxes = truth([(0, 0, 10, 10)] * 2)
    half = [(0, 0, 10, 10), (0, 0, 10, 5)]
    runs = {"a": [Prediction(np.array(half, float), "a.txt")]}
    strict = score_tracking(runs, [boxes], "pytracking-all").overall.curves["success"]
    assert strict[9:12].tolist() == [1, 0.5, 0.5]  # at 0.45, 0.5, 0.55
    loose = score_tracking(runs, [boxes], "trackingnet").overall.curves["success"]
    assert loose[9:12].tolist() == [1, 1, 0.5]
    assert score_tracking(runs, [truth([(0, 0, 10, 10)] * 2)], "got10k").overall.values["sr50"] == 0


def test_the_benchmarks_auc_is_the_mean_of_its_sequences_but_got10k_pools_frames():
    one, two = truth(moving(10), name="a"), truth(moving(40, 1), name="b")
    runs = {"a": [Prediction(one.boxes, "a.txt")], "b": [Prediction(two.boxes + np.array([9, 4, 0, 3]), "b.txt")]}
    found = score_tracking(runs, [one, two])
    both = [each.values["success_auc"] for each in found.sequences.values()]
    assert found.overall.values["success_auc"] == pytest.approx(np.mean(both))
    assert both[0] > both[1]
    pooled = score_tracking(runs, [one, two], "got10k")
    ao = {name: each.values["ao"] for name, each in pooled.sequences.items()}
    assert pooled.overall.values["ao"] == pytest.approx((9 * ao["a"] + 39 * ao["b"]) / 48)
    assert abs(pooled.overall.values["ao"] - np.mean(list(ao.values()))) > 0.01


def test_got10k_leaves_out_the_first_frame_and_invisible_ones_and_bounds_both_boxes():
    boxes = np.array([(0, 0, 10, 10), (90, 0, 10, 10), (0, 0, 10, 10), (20, 20, 10, 10)], float)
    predicted = np.array([(50, 50, 1, 1), (90, 0, 20, 10), (70, 70, 5, 5), (20, 20, 10, 5)], float)
    found = scored(predicted, truth(boxes, [True, True, False, True], size=(100, 100)), "got10k")
    assert found == pytest.approx({"ao": 75, "sr50": 50, "sr75": 50})
    unbounded = scored(predicted, truth(boxes, [True, True, False, True]), "got10k")
    assert unbounded["ao"] == pytest.approx(50)


def test_bounds_raise_the_overlap_of_a_box_that_leaves_the_picture_where_the_truth_touches_its_border():
    true, out = np.array([[90, 40, 10, 10.0]]), np.array([[90, 40, 30, 10.0]])
    assert overlaps(out, true) == pytest.approx(1 / 3)
    assert bounded_overlaps(out, true, (100, 80)) == pytest.approx(1)
    assert out.tolist() == [[90, 40, 30, 10]]  # inputs stay as they are
    moved = bounded_overlaps(np.array([[-5, 0, 10, 10.0]]), np.array([[0, 0, 10, 10.0]]), (100, 80))
    assert moved == pytest.approx(1)  # moved in, not cut


def test_absent_rows_of_uav123_count_as_correct_centres_and_nowhere_else():
    boxes = TRUTH.copy()
    boxes[2] = np.nan
    predicted = [*PREDICTED[:3], (60, 60, 20, 20)]
    values = {name: scored(predicted, truth(boxes, VISIBLE), "pytracking-all", name) for name in ("uav123", "otb100")}
    assert values["uav123"]["precision"] == 75
    assert values["otb100"]["precision"] == 50
    assert values["uav123"]["success_auc"] == values["otb100"]["success_auc"]
    assert values["uav123"]["normalized_precision"] == values["otb100"]["normalized_precision"] == 75
    assert scored(predicted, truth(boxes, VISIBLE), "pytracking", "uav20l") == values["uav123"]


def test_normalised_precision_does_not_change_with_scale_and_place_but_precision_does():
    boxes, predicted = moving(200), moving(200) + np.random.default_rng(3).normal(0, 8, (200, 4))
    here = scored(np.abs(predicted), truth(boxes), "pytracking-all")
    far = scored(np.abs(predicted) * 4 + (64, 32, 0, 0), truth(boxes * 4 + (64, 32, 0, 0)), "pytracking-all")
    assert far["normalized_precision"] == here["normalized_precision"]
    assert far["precision"] < here["precision"] - 5
    errors = normalized_center_errors(predicted, boxes)
    assert normalized_center_errors(predicted * 4 + (64, 32, 0, 0), boxes * 4 + (64, 32, 0, 0)) == pytest.approx(errors)


def test_centre_errors_by_hand():
    one, other = np.array([[10, 10, 20, 20.0]]), np.array([[13, 14, 20, 20.0]])
    assert center_errors(one, other) == pytest.approx(5)
    assert normalized_center_errors(one, other * (1, 1, 2, 1)) == pytest.approx(np.hypot(13 / 40, 4 / 20))


def test_twenty_pixels_and_a_fifth_of_a_side_still_pass():
    boxes = truth([(0, 0, 100, 100)] * 2)
    found = scored([(0, 0, 100, 100), (20, 0, 100, 100)], boxes, "pytracking-all")
    assert (found["precision"], found["normalized_precision"]) == (100, 100)
    found = scored([(0, 0, 100, 100), (20.01, 0, 100, 100)], boxes, "pytracking-all")
    assert (found["precision"], found["normalized_precision"]) == (50, 50)


def test_lasots_toolkit_divides_by_all_frames_and_passes_centres_of_boxes_at_zero():
    boxes = np.array([(5, 5, 10, 10), (0, 5, 10, 10), (9, 9, 10, 10), (5, 5, 10, 10)], float)
    predicted = np.array([(1, 1, 1, 1), (80, 80, 9, 9), (80, 80, 9, 9), (5, 5, 10, 10)], float)
    found = scored(predicted, truth(boxes, [True, True, False, True]), "lasot", "lasot")
    assert found["precision"] == found["normalized_precision"] == 75
    assert found["success_auc"] == pytest.approx(2 * 2000 / 21 / 4)
    ours = scored(predicted, truth(boxes, [True, True, False, True]), "pytracking-all", "lasot")
    assert ours["precision"] == 50  # left 0 is a box as any other there


def test_trackingnets_areas_by_hand():
    """One of two frames has IoU 1/2, an error of 10 pixels and half a side: steps at 0.5, 0.2 and 1 of the x axes."""
    boxes = truth([(10, 10, 20, 20)] * 2)
    found = scored([(0, 0, 1, 1), (20.4, 9.6, 20, 20)], boxes, "trackingnet")
    third = (1 / 3) // 0.05  # passes at 0 … 0.30
    assert found["success_auc"] == pytest.approx(50 + 50 * (third + 0.5) / 20)
    assert found["precision"] == pytest.approx(50 + 50 * (16.5 / 20))
    assert found["normalized_precision"] == pytest.approx(50 + 50 * 0.5 / 20)


def test_longer_results_are_cut_shorter_ones_padded_or_refused():
    boxes = moving(4)
    true = truth(boxes)
    for convention in ("pytracking-all", "pytracking", "lasot", "trackingnet"):
        long = scored([*boxes, (1, 1, 1, 1)], true, convention, "lasot")
        assert long == scored(boxes, true, convention, "lasot")
    short = scored(boxes[:3], true, "pytracking-all", "otb100")
    assert short["success_auc"] == pytest.approx(0.75 * 2000 / 21)
    for convention, benchmark, count in [
        ("pytracking-all", "lasot", 3),
        ("lasot", "lasot", 3),
        ("got10k", "", 3),
        ("got10k", "", 5),
        ("trackingnet", "", 3),
    ]:
        with pytest.raises(DataError, match=rf"^a\.txt: {count} boxes for the 4 frames of 'a': give one per frame"):
            scored(np.resize(boxes, (count, 4)), true, convention, benchmark)


def test_boxes_without_area_are_replaced_by_the_one_before():
    boxes = np.array([(10, 10, 20, 20)] * 4, float)
    predicted = [(0, 0, 5, 5), (10, 10, 20, 20), (0, 0, 0, 7), (0, 0, 0, 0)]
    assert scored(predicted, truth(boxes), "pytracking-all")["precision"] == 100
    hidden = boxes.copy()
    hidden[2] = np.nan  # not replaced, so frame 3 follows a box of no size
    assert scored(predicted, truth(hidden), "pytracking-all", "otb100")["success_auc"] == pytest.approx(1000 / 21)


@pytest.mark.parametrize("convention", ["pytracking-all", "pytracking", "got10k", "trackingnet"])
def test_what_is_no_number_or_negative_names_file_and_row(convention):
    boxes = moving(3)
    broken = boxes.copy()
    broken[1, 2] = np.nan
    with pytest.raises(DataError, match=r"^a\.txt, row 2: .*nan.* has no finite number: run"):
        scored(broken, truth(boxes), convention)
    broken[1, 2] = -3
    with pytest.raises(DataError, match=r"^a\.txt, row 2: .*-3.* has a negative side: run"):
        scored(broken, truth(boxes), convention)


def test_lasots_toolkit_holds_the_box_before_instead():
    boxes = np.array([(10, 10, 20, 20)] * 4, float)
    predicted = [(10, 10, 20, 20), (np.nan, 0, 1, 1), (5, 5, -3, 4), (5, 5, 3, 0)]
    assert scored(predicted, truth(boxes), "lasot")["success_auc"] == pytest.approx(2000 / 21)


def test_curves_of_repetitions_are_averaged_before_those_of_sequences():
    one, two = truth(moving(10), name="a"), truth(moving(20, 1), name="b")
    off = Prediction(one.boxes + 300, "off.txt")
    runs = {"a": [Prediction(one.boxes, "a.txt"), off], "b": [Prediction(two.boxes, "b.txt")]}
    found = score_tracking(runs, [one, two])
    assert found.sequences["a"].values["op50"] == pytest.approx((1 + 0.1) / 2)  # the first frame is given
    assert found.overall.values["op50"] == pytest.approx((0.55 + 1) / 2)
    pooled = score_tracking({"a": runs["a"], "b": runs["b"]}, [one, two], "got10k").overall.values["sr50"]
    assert pooled == pytest.approx((9 * 0.5 + 19) / 28)


def test_attributes_are_means_over_the_sequences_that_have_them():
    truths = [
        truth(moving(10), name="a", attributes=("fast",)),
        truth(moving(10, 1), name="b", attributes=("fast", "blur")),
        truth(moving(10, 2), name="c"),
    ]
    runs = {t.name: [Prediction(t.boxes + shift, "r.txt")] for t, shift in zip(truths, (0, 300, 0), strict=True)}
    found = score_tracking(runs, truths)
    assert {name: each.values["op50"] for name, each in found.attributes.items()} == pytest.approx(
        {"blur": 0.1, "fast": 0.55}
    )


def test_what_is_written_as_json_is_complete_and_says_its_convention():
    true = truth(TRUTH, VISIBLE, attributes=("fast",))
    row = score_tracking({"a": [Prediction(PREDICTED, "a.txt")]}, [true], "pytracking-all", "lasot").to_dict()
    row = json.loads(json.dumps(row, allow_nan=False))
    assert (row["convention"], row["benchmark"]) == ("pytracking-all", "lasot")
    assert row["metrics"]["precision"] == row["sequences"]["a"]["metrics"]["precision"] == 0.75
    assert row["attributes"]["fast"] == row["metrics"]
    assert {name: len(each) for name, each in row["thresholds"].items()} == {
        "success": 21, "precision": 51, "normalized_precision": 51
    }  # fmt: skip
    hidden = truth(TRUTH, [True, False, False, False])
    empty = score_tracking({"a": [Prediction(PREDICTED, "a.txt")]}, [hidden], "got10k").to_dict()
    assert empty["metrics"]["ao"] is None


def test_a_sequence_that_is_never_visible_counts_nothing_in_the_pool_and_is_refused_by_valid_frames():
    seen, hidden = truth(moving(5), name="a"), truth(moving(5), np.arange(5) < 0, name="b")
    runs = {"a": [Prediction(seen.boxes, "a.txt")], "b": [Prediction(seen.boxes + 99, "b.txt")]}
    assert score_tracking(runs, [seen, hidden], "got10k").overall.values["ao"] == pytest.approx(1)
    with pytest.raises(DataError, match="sequence 'b' has no frame with a visible target"):
        score_tracking(runs, [seen, hidden], "pytracking", "otb100")


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match=r"unknown convention 'lasott'\. Did you mean 'lasot'"):
        score_tracking({}, [truth(moving(2))], "lasott")
    with pytest.raises(DataError, match="2 of 2 sequences have no result, the first is 'a'"):
        score_tracking({"b": []}, [truth(moving(2)), truth(moving(2), name="b")])
    with pytest.raises(DataError, match="0 of 0 sequences"):
        score_tracking({}, [])
    with pytest.raises(DataError, match=r"^a\.txt: boxes of shape \(4,\)"):
        scored(TRUTH[0], truth(TRUTH), "lasot")


def test_speed_is_the_mean_over_positive_times():
    assert frames_per_second([[0.5], [0.25], [0.0]]) == pytest.approx(3)
    assert frames_per_second([0, 0]) is None


def test_all_metrics_are_shares_of_which_more_is_better():
    for convention in CONVENTIONS:
        for name in scored(TRUTH[[0, 1, 3]], truth(TRUTH[[0, 1, 3]]), convention):
            assert is_share(name)
            assert larger_is_better(name)


def test_got10ks_own_toolkit_computes_the_same():
    metrics = pytest.importorskip("got10k.utils.metrics")
    one, other = moving(100, 4) - 60, moving(100, 5) - 60
    assert bounded_overlaps(one, other, (120, 90)) == pytest.approx(
        metrics.rect_iou(one.copy(), other.copy(), bound=(120, 90))
    )
    assert overlaps(one, other) == pytest.approx(metrics.rect_iou(one, other))
    assert center_errors(one, other) == pytest.approx(metrics.center_error(one, other))
