from itertools import permutations

import numpy as np
import pytest

from vision_lowrank.data.boxes import pairwise_iou
from vision_lowrank.errors import UserError
from vision_lowrank.metrics.localisation.boxes import (
    LEVELS,
    average_precisions,
    baseline_report,
    box_report,
    judge_boxes,
    mean_box,
)

SIZE = (40, 30)


def boxes(rng, n, size=SIZE):
    low = rng.uniform(-3, np.array(size) * 0.8, (n, 2))
    return np.concatenate([low, low + rng.uniform(1, 16, (n, 2))], axis=1)


def drawn(rects, size=SIZE):
    """A mask, pixel by pixel: those whose centre lies in a box."""
    mask = np.zeros(size[::-1], dtype=bool)
    for y, x in np.ndindex(*mask.shape):
        mask[y, x] = any(x1 <= x + 0.5 < x2 and y1 <= y + 0.5 < y2 for x1, y1, x2, y2 in rects)
    return mask


def union_iou(predicted, truth, size=SIZE):
    return box_report([judge_boxes(predicted, np.ones(len(predicted)), truth, size)], [True])["box_union_iou"]


def test_union_iou_by_hand():
    assert union_iou([[0, 0, 10, 10]], [[5, 0, 15, 10]]) == pytest.approx(1 / 3)
    assert union_iou([[0, 0, 10, 10], [0, 0, 10, 10], [2, 2, 8, 8]], [[5, 0, 15, 10]]) == pytest.approx(1 / 3)
    assert union_iou([], [[5, 0, 15, 10]]) == 0
    assert union_iou([[5, 0, 15, 10]], [[5, 0, 15, 10]]) == 1
    assert union_iou([[5, 0, 10, 10], [10, 0, 15, 10]], [[5, 0, 15, 10]]) == 1


def test_union_metrics_equal_drawn_masks_and_do_not_change_when_all_is_mirrored():
    rng = np.random.default_rng(0)
    outcomes, iou, f1, areas = [], [], [], []
    for _ in range(30):
        p, g = boxes(rng, rng.integers(0, 4)), boxes(rng, rng.integers(1, 4))
        one, other = drawn(p), drawn(g)
        outcomes.append(judge_boxes(p, np.ones(len(p)), g, SIZE))
        iou.append((one & other).sum() / (one | other).sum())
        f1.append(2 * (one & other).sum() / (one.sum() + other.sum()))
        areas.append(one.mean())
        mirrored = [40 - each[:, [2, 1, 0, 3]] * [1, -1, 1, -1] - [0, 40, 0, 40] for each in (p, g)]
        assert union_iou(*mirrored) == pytest.approx(iou[-1])
    found = box_report(outcomes, [True] * 30)
    assert found["box_union_iou"] == pytest.approx(np.mean(iou))
    assert found["box_union_f1"] == pytest.approx(np.mean(f1))
    real = box_report(outcomes, [False] * 30)
    assert real["box_false_area"] == pytest.approx(np.mean(areas))


def test_pairwise_iou_on_whole_pixels_equals_masks():
    rng = np.random.default_rng(1)
    p, g = np.rint(np.clip(boxes(rng, 5), 0, 30)), np.rint(np.clip(boxes(rng, 4), 0, 30))
    p[0, 2:] = p[0, :2]  # without area
    found = pairwise_iou(p, g)
    for row, column in np.ndindex(5, 4):
        one, other = drawn(p[row : row + 1]), drawn(g[column : column + 1])
        assert found[row, column] == pytest.approx((one & other).sum() / max((one | other).sum(), 1))


def test_matched_iou_is_the_best_assignment_whatever_the_order():
    truth = [[0, 0, 10, 10]]
    assert judge_boxes([[20, 5, 30, 9], [0, 0, 10, 10]], [0.9, 0.6], truth, SIZE).matched_iou == 0.5
    rng = np.random.default_rng(2)
    for _ in range(20):
        p, g = boxes(rng, 3), boxes(rng, 3)
        overlap = pairwise_iou(np.clip(p, 0, np.tile(SIZE, 2)), np.clip(g, 0, np.tile(SIZE, 2)))
        best = max(sum(overlap[i, j] for i, j in enumerate(order)) for order in permutations(range(3)))
        for order in permutations(range(3)):
            found = judge_boxes(p[list(order)], np.ones(3), g[list(order)[::-1]], SIZE).matched_iou
            assert found == pytest.approx(best / 3)


def test_boxes_below_the_threshold_count_in_average_precision_only():
    truth = [[0, 0, 10, 10]]
    found = box_report([judge_boxes(truth, [0.49], truth, SIZE)], [True])
    assert (found["box_union_iou"], found["box_matched_iou"], found["box_ap50"]) == (0, 0, 1)


def slow_average_precision(pictures, level):
    """By the definition: walk down the scores, and average the best precision at or beyond every recall."""
    total = sum(len(truth) for _, _, truth in pictures)
    entries = sorted(
        (
            (score, number, index)
            for number, (_, scores, _) in enumerate(pictures)
            for index, score in enumerate(scores)
        ),
        reverse=True,
    )
    free = {(number, g) for number, (_, _, truth) in enumerate(pictures) for g in range(len(truth))}
    points, hits = [], 0
    for rank, (_, number, index) in enumerate(entries, 1):
        rects, _, truth = pictures[number]
        options = []
        for g in range(len(truth)):
            if (number, g) in free:
                overlap = pairwise_iou(rects[index : index + 1], truth[g : g + 1])[0, 0]
                options += [(overlap, g)] if overlap >= level else []
        if options:
            free.remove((number, max(options)[1]))
            hits += 1
        points.append((hits, hits / rank))
    return sum(max((p for h, p in points if h >= k), default=0.0) for k in range(1, total + 1)) / total


def crowd(seed=3, n=25):
    """Pictures with jittered and spurious boxes, a third of them real."""
    rng, pictures = np.random.default_rng(seed), []
    for number in range(n):
        truth = np.clip(boxes(rng, 0 if number % 3 == 0 else rng.integers(1, 4)), 0, 30)
        near = np.clip(truth + rng.normal(0, 1, truth.shape), 0, 30)
        again = np.clip(truth + rng.normal(0, 1, truth.shape), 0, 30)
        rects = np.concatenate([near, again, np.clip(boxes(rng, rng.integers(0, 3)), 0, 30)])
        pictures.append((rects, rng.random(len(rects)), truth))
    return pictures


def judged(pictures, change=lambda scores: scores):
    return [judge_boxes(rects, change(scores), truth, SIZE) for rects, scores, truth in pictures]


def test_average_precision_equals_its_definition_at_every_level():
    pictures = crowd()
    found = average_precisions(judged(pictures))
    assert found == pytest.approx([slow_average_precision(pictures, level) for level in LEVELS], rel=1e-12)
    assert 0.2 < found[0] < 0.95 and found[-1] < found[0]  # noqa: PT018 - a case that tells something
    report = box_report(judged(pictures), [len(truth) > 0 for *_, truth in pictures])
    assert (report["box_ap50"], report["box_ap"]) == pytest.approx((found[0], found.mean()))


def test_average_precision_of_a_perfect_detector_and_of_false_alarms_on_real_pictures():
    truth = np.array([[0.0, 0, 10, 10], [20, 10, 30, 25]])
    perfect, silent = judge_boxes(truth, [0.8, 0.6], truth, SIZE), judge_boxes([], [], [], SIZE)
    assert average_precisions([perfect, silent]) == pytest.approx(np.ones(10))
    loud, quiet = (judge_boxes(truth[:1], [score], [], SIZE) for score in (0.9, 0.1))
    assert average_precisions([perfect, loud])[0] == pytest.approx(2 / 3)  # precision 1/2, 2/3 -> 2/3, 2/3
    assert average_precisions([perfect, quiet])[0] == 1
    assert average_precisions([silent, loud]) is None


def test_a_second_box_on_the_same_region_is_a_false_alarm():
    truth = [[0, 0, 10, 10], [20, 10, 30, 25]]
    twice = judge_boxes([truth[0], truth[0], truth[1]], [0.9, 0.8, 0.7], truth, SIZE)
    assert twice.hits[:, 1].tolist() == [1, 0, 1]
    assert average_precisions([twice])[0] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


def test_average_precision_depends_on_the_order_of_scores_only():
    pictures = crowd()
    squeezed = average_precisions(judged(pictures, lambda scores: scores**3 / 10))
    assert squeezed == pytest.approx(average_precisions(judged(pictures)), rel=1e-12)


def test_equal_scores_do_not_depend_on_the_order_of_pictures_or_boxes():
    truth = [[0, 0, 10, 10], [3, 0, 13, 10]]
    loose, exact = [1, 0, 11, 10], [0, 0, 10, 10]  # the loose box has IoU 0.82 and 0.67, the exact one 1 and 0.54
    for rects in ([loose, exact], [exact, loose]):
        found = judge_boxes(rects, [0.9, 0.9], truth, SIZE).hits
        assert found[:, 1 + LEVELS.tolist().index(0.6)].tolist() == [1, 1]
    pictures = [(rects, np.round(scores, 1), truth) for rects, scores, truth in crowd()]
    turned = [(rects[::-1], scores[::-1], truth) for rects, scores, truth in pictures[::-1]]
    assert average_precisions(judged(turned)) == pytest.approx(average_precisions(judged(pictures)), rel=1e-12)


def test_real_pictures_count_in_false_localisation_only():
    truth = [[0, 0, 10, 10]]
    hit = judge_boxes(truth, [0.9], truth, SIZE)
    alarm, silent = judge_boxes([[0, 0, 20, 15]], [0.5], [], SIZE), judge_boxes([[0, 0, 20, 15]], [0.4], [], SIZE)
    found = box_report([hit, alarm, silent], [True, False, False])
    assert (found["box_union_iou"], found["box_matched_iou"], found["box_pictures"]) == (1, 1, 1)
    assert (found["box_false_localisation"], found["box_false_area"]) == (0.5, 0.125)
    only_real = box_report([silent], [False])
    assert [only_real[name] for name in ("box_union_iou", "box_matched_iou", "box_ap50", "box_ap")] == [None] * 4


def test_baselines_are_the_mean_training_box_and_the_whole_picture():
    constant = mean_box([[[0, 0, 10, 15]], [], [[20, 0, 40, 15], [30, 15, 40, 30]]], [SIZE] * 3)
    assert constant == pytest.approx([50 / 3 / 40, 5 / 30, 90 / 3 / 40, 20 / 30])
    truths, sizes = [[[0, 0, 20, 15]], []], [SIZE, (80, 10)]
    found = baseline_report(truths, sizes, [True, False], [0, 0, 0.5, 1])
    assert found["constant_box/box_union_iou"] == pytest.approx(0.5)
    assert found["full_box/box_union_iou"] == pytest.approx(0.25)
    assert (found["constant_box/box_false_area"], found["full_box/box_false_area"]) == (0.5, 1)
    assert found["full_box/box_matched_iou"] == pytest.approx(0.25)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="one score per box"):
        judge_boxes([[0, 0, 1, 1]], [], [], SIZE)
    with pytest.raises(UserError, match="left, top, right, bottom"):
        judge_boxes([[0, 0, 1]], [0.5], [], SIZE)
    with pytest.raises(UserError, match="no boxes"):
        mean_box([[]], [SIZE])
    with pytest.raises(UserError, match="one label per picture"):
        box_report([], [True])
