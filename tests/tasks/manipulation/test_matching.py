import itertools

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from vision_lowrank.tasks.manipulation.decoders import corners
from vision_lowrank.tasks.manipulation.matching import giou, match


def some_boxes(*shape):
    """Random cx, cy, w, h inside the picture."""
    low, high = torch.rand(2, *shape, 2, dtype=torch.float64).sort(dim=0).values
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def test_giou_is_torchvisions():
    one, two = corners(some_boxes(6)), corners(some_boxes(9))
    torch.testing.assert_close(giou(one[:, None], two), generalized_box_iou(one, two))


def test_corners_are_torchvisions():
    boxes = some_boxes(5)
    torch.testing.assert_close(corners(boxes), box_convert(boxes, "cxcywh", "xyxy"))


@pytest.mark.parametrize(
    ("other", "expected"),
    [((0, 0, 2, 2), 1.0), ((1, 0, 3, 2), 1 / 3), ((3, 0, 5, 2), -0.2), ((1, 1, 3, 3), 1 / 7 - 2 / 9)],
)  # fmt: skip
def test_giou_by_hand(other, expected):
    box, other = torch.tensor([0.0, 0, 2, 2]), torch.tensor(other, dtype=torch.float)
    assert giou(box, other).item() == pytest.approx(expected)


def test_boxes_without_area_have_a_finite_overlap_and_gradient():
    point = torch.full((4,), 0.5, requires_grad=True)
    value = giou(point, torch.full((4,), 0.5))
    value.backward()
    assert value.isfinite()
    assert point.grad.isfinite().all()


def total_cost(boxes, objectness, wanted, pairs):
    """The card's cost of some pairs of one picture."""
    overlap = generalized_box_iou(corners(boxes), corners(wanted))
    return sum(
        5 * (boxes[k] - wanted[m]).abs().sum() + 2 * (1 - overlap[k, m]) - objectness[k].sigmoid() for k, m in pairs
    )


@pytest.mark.parametrize(("queries", "wanted"), [(5, 3), (3, 3), (2, 4)])
def test_no_other_assignment_is_cheaper(queries, wanted):
    boxes, objectness, targets = some_boxes(queries), torch.randn(queries, dtype=torch.float64), some_boxes(wanted)
    found = match(boxes[None], objectness[None], [targets])
    pairs = list(zip(found.queries.tolist(), found.targets.tolist(), strict=True))
    fewer = min(queries, wanted)
    every = (
        list(zip(left, right, strict=True))
        for left in itertools.permutations(range(queries), fewer)
        for right in itertools.combinations(range(wanted), fewer)
    )
    assert len(pairs) == fewer
    best = min(total_cost(boxes, objectness, targets, choice) for choice in every)
    torch.testing.assert_close(total_cost(boxes, objectness, targets, pairs), best)


def test_each_picture_is_matched_with_its_own_boxes():
    targets = [some_boxes(2), some_boxes(0), some_boxes(3)]
    boxes = some_boxes(3, 4)
    boxes[0, [3, 1]], boxes[2, [0, 2, 3]] = targets[0], targets[2]
    pictures, queries, wanted = match(boxes, torch.zeros(3, 4), targets)
    rows = sorted(zip(pictures.tolist(), queries.tolist(), wanted.tolist(), strict=True))
    assert rows == [(0, 1, 1), (0, 3, 0), (2, 0, 2), (2, 2, 3), (2, 3, 4)]


def test_of_equal_boxes_the_surer_one_is_taken():
    box = some_boxes(1)
    found = match(box.repeat(1, 3, 1), torch.tensor([[0.0, 2.0, 1.0]]), [box])
    assert found.queries.tolist() == [1]


def test_permuting_the_queries_permutes_the_matches():
    boxes, objectness, targets = some_boxes(2, 6), torch.randn(2, 6), [some_boxes(3), some_boxes(1)]
    order = torch.randperm(6)
    one = match(boxes, objectness, targets)
    two = match(boxes[:, order], objectness[:, order], targets)
    pairs = {tuple(row) for row in zip(*(part.tolist() for part in one), strict=True)}
    assert {(p, int(order[q]), t) for p, q, t in zip(*(part.tolist() for part in two), strict=True)} == pairs


def test_nothing_to_match_and_diverged_boxes_are_no_error():
    none = match(some_boxes(2, 3), torch.zeros(2, 3), [some_boxes(0)] * 2)
    assert [len(part) for part in none] == [0, 0, 0]
    assert len(match(torch.full((1, 3, 4), torch.nan), torch.zeros(1, 3), [some_boxes(2).float()]).queries) == 2


def test_sureness_counts_as_a_probability():
    """Two queries at the same distance or nearly so: a logit of 9 is hardly more than one of 3, as probabilities go."""
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.23]]])
    wanted = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    assert match(boxes, torch.tensor([[3.0, 9.0]]), [wanted]).queries.tolist() == [0]
