import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_area, box_convert, box_iou

from vision_lowrank.data.boxes import Boxes
from vision_lowrank.errors import UserError

SIZE = (90, 60)


@st.composite
def some(draw, scored=False):
    """Up to five boxes of positive area inside a picture of SIZE."""
    rows = []
    for _ in range(draw(st.integers(0, 5))):
        corners = []
        for side in SIZE:
            low = draw(st.floats(0, side - 1))
            corners.append((low, draw(st.floats(low + 0.5, side))))
        rows.append((corners[0][0], corners[1][0], corners[0][1], corners[1][1]))
    scores = draw(st.lists(st.floats(0, 1), min_size=len(rows), max_size=len(rows))) if scored else None
    return Boxes(rows, scores, size=SIZE)


def tensor(boxes):
    return torch.from_numpy(boxes.xyxy.copy())


@given(some())
def test_other_forms_are_those_of_torchvision_and_come_back(boxes):
    np.testing.assert_allclose(boxes.xywh, box_convert(tensor(boxes), "xyxy", "xywh"))
    relative = box_convert(tensor(boxes) / torch.tensor(SIZE * 2), "xyxy", "cxcywh")
    np.testing.assert_allclose(boxes.cxcywh, relative, atol=1e-12)
    np.testing.assert_allclose(Boxes.from_xywh(boxes.xywh).xyxy, boxes.xyxy, atol=1e-12)
    again = Boxes.from_cxcywh(boxes.cxcywh, SIZE)
    np.testing.assert_allclose(again.xyxy, boxes.xyxy, atol=1e-12)
    assert again.size == SIZE
    np.testing.assert_allclose(boxes.area, box_area(tensor(boxes)))


@given(some(), some())
def test_iou_is_that_of_torchvision(one, other):
    found = one.iou(other)
    assert found.shape == (len(one), len(other))
    np.testing.assert_allclose(found, box_iou(tensor(one), tensor(other)), atol=1e-12)


@given(some(scored=True), st.integers(1, 200), st.integers(1, 200))
def test_another_size_is_the_factor_of_each_side(boxes, width, height):
    x, y = width / SIZE[0], height / SIZE[1]
    small = boxes.resize((width, height))
    assert list(small) == [(x0 * x, y0 * y, x1 * x, y1 * y) for x0, y0, x1, y1 in boxes]
    assert (small.size, small.scores.tolist()) == ((width, height), boxes.scores.tolist())
    assert boxes.resize(SIZE) == boxes


@given(some())
def test_flips_and_turns(boxes):
    np.testing.assert_allclose(boxes.flip().flip().xyxy, boxes.xyxy, atol=1e-12)
    turned = boxes.turn()
    assert turned.size == (60, 90)
    for _ in range(3):
        turned = turned.turn()
    np.testing.assert_allclose(turned.xyxy, boxes.xyxy, atol=1e-12)
    assert turned.size == SIZE


def test_flips_and_turns_are_those_of_arrays():
    mask = np.zeros((60, 90), dtype=bool)
    mask[10:25, 30:70] = True
    box = Boxes([(30, 10, 70, 25)], size=SIZE)
    for moved, array in ((box.flip(), mask[:, ::-1]), (box.turn(), np.rot90(mask))):
        rows, columns = np.nonzero(array)
        assert list(moved) == [(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
        assert moved.size == array.shape[::-1]


def test_clipping_cuts_at_the_borders():
    boxes = Boxes([(-5, 10, 200, 70), (95, 0, 99, 5)], [0.5, 0.25], [3, 1], SIZE).clip()
    assert list(boxes) == [(0, 10, 90, 60), (90, 0, 90, 5)]
    assert boxes.area.tolist() == [90 * 50, 0]
    assert (boxes.scores.tolist(), boxes.labels.tolist()) == ([0.5, 0.25], [3, 1])


def test_chosen_boxes_keep_what_is_known_of_them():
    boxes = Boxes([(0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 3, 3)], [0.9, 0.2, 0.6], [7, 8, 9], SIZE)
    for chosen in (boxes.scores > 0.5, [0, 2], slice(0, None, 2), np.array([0, 2])):
        assert boxes[chosen] == Boxes([(0, 0, 1, 1), (0, 0, 3, 3)], [0.9, 0.6], [7, 9], SIZE)
    assert boxes[2] == boxes[[2]] == boxes[-1:]
    assert boxes[[]] == boxes[:0] == boxes[boxes.scores > 1] == Boxes((), (), (), SIZE)
    assert not boxes[:0]


def test_boxes_join_where_both_have_the_same():
    one, other = Boxes([(0, 0, 1, 1)], [0.5], size=SIZE), Boxes([(0, 0, 2, 2)], [0.25])
    assert one.join(other) == Boxes([(0, 0, 1, 1), (0, 0, 2, 2)], [0.5, 0.25], size=SIZE)
    with pytest.raises(UserError, match="boxes with scores and boxes without cannot be joined"):
        one.join(Boxes([(0, 0, 2, 2)]))


def test_rows_and_tensors():
    boxes = Boxes([(1.2345, 0, 3, 4.5)], [0.123456789], [2])
    assert boxes.to_rows() == [{"xyxy": [1.23, 0.0, 3.0, 4.5], "score": 0.123457, "label": 2}]
    assert Boxes([(0, 0, 1, 1)]).to_rows() == [{"xyxy": [0.0, 0.0, 1.0, 1.0]}]
    assert torch.equal(boxes.to_tensor(), torch.tensor([[1.2345, 0, 3, 4.5]]))
    assert Boxes().to_tensor().shape == (0, 4)


def test_they_are_values():
    rows = np.array([[0.0, 0, 1, 1]])
    boxes = Boxes(rows, [0.5], size=SIZE)
    rows += 1
    assert list(boxes) == [(0, 0, 1, 1)]
    assert boxes == pickle.loads(pickle.dumps(boxes)) != Boxes([(0, 0, 1, 1)], [0.5])
    assert boxes != Boxes([(0, 0, 1, 1)], size=SIZE)
    assert boxes != [(0, 0, 1, 1)]
    with pytest.raises(ValueError, match="read-only"):
        boxes.xyxy[0, 0] = 3
    assert "score': 0.5" in repr(boxes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Boxes([(0, 0, 1)]), r"boxes of shape \(1, 3\): give finite numbers \(n, 4\)"),
        (lambda: Boxes([(0, 0, 1, float("nan"))]), "give finite numbers"),
        (lambda: Boxes([(0, 0, 1, 1)], [0.5, 0.5]), "1 boxes with 2 scores: give one score per box"),
        (lambda: Boxes([(0, 0, 1, 1)], labels=[]), "1 boxes with 0 labels: give one label per box"),
        (lambda: Boxes().flip(), "do not know the size of their picture"),
        (lambda: Boxes().cxcywh, "do not know the size of their picture"),
    ],
)
def test_what_makes_no_boxes_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
