import numpy as np
import pytest
from PIL import Image
from skimage.measure import label, regionprops

from vision_lowrank.data.manipulation.base import EDITED, PictureRecord, Region
from vision_lowrank.data.manipulation.pair_masks import annotated, pair_difference
from vision_lowrank.data.manipulation.regions import boxes_of_mask, mask_of_boxes, with_boxes


def test_boxes_of_a_mask_are_its_components_extents():
    mask = np.random.default_rng(0).random((60, 80)) < 0.35
    expected = [
        (float(x0), float(y0), float(x1), float(y1))
        for region in regionprops(label(mask, connectivity=2))
        if region.area >= 16
        for y0, x0, y1, x1 in [region.bbox]
    ]
    assert len(expected) >= 3
    assert sorted(boxes_of_mask(mask)) == sorted(expected)


def test_small_components_are_no_boxes():
    mask = np.zeros((32, 32), bool)
    mask[:3, :5] = True
    assert boxes_of_mask(mask) == ()
    mask[3, 0] = True
    assert boxes_of_mask(mask) == ((0, 0, 5, 4),)
    large = np.zeros((1000, 1000), bool)
    large[:9, :11] = True  # 99 px, below 0.01 % of a million
    large[500:510, 500:510] = True
    assert boxes_of_mask(large) == ((500, 500, 510, 510),)
    assert boxes_of_mask(np.zeros((4, 4), bool)) == ()


def test_filled_boxes_and_back():
    boxes = ((2.0, 3.0, 12.0, 9.0), (20.0, 0.0, 32.0, 16.0))
    mask = mask_of_boxes(boxes, 32, 16)
    assert mask.shape == (16, 32)
    assert mask.sum() == 10 * 6 + 12 * 16
    assert boxes_of_mask(mask) == ((20, 0, 32, 16), (2, 3, 12, 9))  # by their first row
    assert mask_of_boxes([(0.4, 0.6, 2.5, 2.4)], 4, 4).tolist() == [
        [False] * 4, [True, True, False, False], [False] * 4, [False] * 4,
    ]  # fmt: skip


def test_derived_boxes_are_marked_and_never_replace_drawn_ones():
    mask = mask_of_boxes([(1, 1, 9, 9)], 16, 16)
    record = with_boxes(PictureRecord("a", "a", EDITED, "a"), mask)
    assert record.boxes == (Region((1, 1, 9, 9)),)
    assert record.derived
    drawn = PictureRecord("a", "a", EDITED, "a", boxes=(Region((0, 0, 1, 1)),))
    assert with_boxes(drawn, mask) is drawn
    assert with_boxes(PictureRecord("a", "a", EDITED, "a", scope="global"), mask).boxes is None


def pair(part, amount=60, noise=3):
    """A real picture of 64 x 64 and the same with `part` of it brightened, and sensor noise on both."""
    random = np.random.default_rng(1)
    real = np.full((64, 64, 3), 90.0) + random.normal(0, noise, (64, 64, 3))
    edited = np.full((64, 64, 3), 90.0) + random.normal(0, noise, (64, 64, 3))
    edited[part] += amount
    return [Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)) for values in (real, edited)]


@pytest.mark.parametrize("side", [10, 32, 40, 48])  # 2 to 56 % of the picture: Cantelli's bound is 20 %
def test_an_edited_part_is_found_whatever_its_size(side):
    difference = pair_difference(*pair(np.s_[8 : 8 + side, 8 : 8 + side]))
    assert difference.scope == "local"
    truth = np.zeros((64, 64), bool)
    truth[8 : 8 + side, 8 : 8 + side] = True
    assert (difference.mask & truth).sum() / (difference.mask | truth).sum() > 0.7
    record = annotated(PictureRecord("a", "a", EDITED, "a"), difference, "m.png")
    (box,) = record.boxes
    assert np.abs(np.asarray(box.xyxy) - [8, 8, 8 + side, 8 + side]).max() <= 3
    assert (record.annotator, record.derived, record.mask, record.scope) == ("auto", True, "m.png", "local")


def test_an_edit_at_the_pictures_edge_reaches_the_edge():
    difference = pair_difference(*pair(np.s_[:20, :20]))
    assert boxes_of_mask(difference.mask)[0][:2] == (0, 0)


def test_a_change_of_everything_is_global_and_has_no_mask():
    difference = pair_difference(*pair(np.s_[:, :]))
    assert (difference.scope, difference.mask) == ("global", None)
    assert difference.share > 0.9
    record = annotated(PictureRecord("a", "a", EDITED, "a"), difference, "m.png")
    assert (record.scope, record.mask, record.boxes, record.annotator) == ("global", None, None, "auto")


def test_no_difference_is_not_annotated_as_none():
    real, _ = pair(np.s_[:0])
    difference = pair_difference(real, real)
    assert difference.scope == "unknown"
    assert not difference.mask.any()
    record = annotated(PictureRecord("a", "a", EDITED, "a"), difference, "m.png")
    assert (record.boxes, record.mask) == (None, None)


def test_sizes_are_aligned_to_the_edited_picture():
    real, edited = pair(np.s_[16:48, 16:48], noise=0)
    difference = pair_difference(real.resize((96, 96)), edited)
    assert difference.mask.shape == (64, 64)
    assert np.abs(np.asarray(boxes_of_mask(difference.mask)[0]) - [16, 16, 48, 48]).max() <= 3
