import sys

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.data.boxes import Boxes
from vision_lowrank.data.manipulation.augmentation import (
    AUGMENTATIONS,
    Change,
    ImdlAugmentation,
    TwinAugmentation,
    augmentation,
    label_of,
)
from vision_lowrank.data.manipulation.base import EDITED, REAL, SYNTHETIC
from vision_lowrank.errors import UserError

BOX = (30, 10, 50, 26)
NONE, ONE = Boxes(size=(80, 48)), Boxes([BOX], size=(80, 48))


def twins(width=80, height=48):
    """A smooth picture, and the same with a white rectangle; the mask says where."""
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 200, (4, 5, 3), dtype=np.uint8))
    real = coarse.resize((width, height), Image.Resampling.BICUBIC)
    mask = np.zeros((height, width), dtype=bool)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    pixels = np.array(real)
    pixels[mask] = 255
    return real, Image.fromarray(pixels), mask


def extent(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def quiet(**options):
    """The recipe ``imdl`` with nothing on but `options`."""
    off = dict.fromkeys(("scale", "copy_move", "inpainting", "flip", "light", "compressed", "turned", "blurred"), 0.0)
    return ImdlAugmentation(**{**off, **options})


@pytest.mark.parametrize("recipe", AUGMENTATIONS)
def test_both_twins_get_the_same_and_a_seed_gives_it_again(recipe):
    real, edited, mask = twins()
    augment = augmentation(recipe)
    seen = set()
    for seed in range(12):
        change = augment.draw(seed)
        one, other = change(real, np.zeros_like(mask), NONE), change(edited, mask, ONE)
        assert change(real)[0] == augment.draw(np.random.default_rng(seed))(real)[0]
        assert one[0].size == other[0].size == one[1].shape[::-1] == other[1].shape[::-1]
        # Away from the edit the twins stay about equal, though a codec spreads its traces a little.
        apart = np.abs(np.asarray(one[0], dtype=int) - np.asarray(other[0], dtype=int)).max(axis=-1)
        assert (apart <= 40).mean() > 0.75
        assert np.median(apart) <= 8
        seen.add(one[0].tobytes())
    assert len(seen) > 6


@pytest.mark.parametrize("seed", range(8))
def test_mask_boxes_and_pixels_stay_together(seed):
    _, edited, mask = twins()
    geometry = quiet(scale=0.2, flip=0.5, turned=0.5)
    for augment in (TwinAugmentation(jpeg=(100, 100), webp=(100, 100)), geometry):
        image, moved, (box,) = augment.draw(seed)(edited, mask, ONE)
        np.testing.assert_allclose(extent(moved), box, atol=1)
        np.testing.assert_allclose(extent(np.asarray(image).min(axis=-1) > 225), box, atol=1.01)


def test_what_is_not_annotated_stays_so():
    real, _, mask = twins()
    for seed in range(6):
        for recipe in AUGMENTATIONS:
            _, no_mask, no_boxes = augmentation(recipe).draw(seed)(real)
            assert no_mask is None
            assert no_boxes is None
    _, edited, boxes = quiet(copy_move=1).draw(0)(real, mask)
    assert boxes is None
    assert edited.sum() > mask.sum()


def test_twins_are_changed_as_often_and_as_far_as_the_recipe_says():
    drawn = [TwinAugmentation().draw(rng).steps for rng in [np.random.default_rng(0)] for _ in range(400)]
    assert 0.43 < np.mean([any(step.__name__ == "_flip_x" for step in steps) for steps in drawn]) < 0.57
    kinds = [step.__closure__[0].cell_contents for steps in drawn for step in steps if step.__closure__]
    assert 160 < len(kinds) < 240
    for name, low, high in (("jpeg", 60, 100), ("resize", 0.5, 1), ("webp", 60, 100)):
        levels = [kind.level for kind in kinds if kind.name == name]
        assert 45 < len(levels) < 90
        assert low <= min(levels) < low + 0.1 * (high - low)
        assert high >= max(levels) > high - 0.1 * (high - low)
    real, *_ = twins()
    assert TwinAugmentation(probability=0, flip=0).draw(0)(real)[0] is real


def test_a_flip_comes_before_the_codec():
    real, *_ = twins(83, 41)
    change = TwinAugmentation(jpeg=(60, 60), webp=(60, 60), resize=(1, 1), probability=1, flip=1).draw(0)
    (flip, degrade), mirrored = change.steps, real.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert flip.__name__ == "_flip_x"
    assert change(real)[0] == Change((degrade,), 0)(mirrored)[0]


def test_copied_rectangles_are_elsewhere_in_the_picture_and_in_the_mask():
    real, *_ = twins()
    rng = np.random.default_rng(5)
    image, mask, boxes = quiet(copy_move=1).draw(rng)(real, np.zeros((48, 80), dtype=bool), NONE)
    before, after = np.asarray(real), np.asarray(image)
    (x0, y0, x1, y1) = (int(value) for value in boxes.xyxy[0])
    assert extent(mask) == (x0, y0, x1, y1)
    assert mask.sum() == (x1 - x0) * (y1 - y0)
    np.testing.assert_array_equal(after[~mask], before[~mask])
    patch = after[y0:y1, x0:x1]
    places = np.lib.stride_tricks.sliding_window_view(before, patch.shape)[:, :, 0]
    assert (places == patch).all(axis=(2, 3, 4)).any()
    assert label_of(REAL, mask) == EDITED


def test_inpainting_fills_from_around_and_its_absence_is_said_at_once(monkeypatch):
    pytest.importorskip("cv2")
    real, edited, mask = twins()
    image, covered, boxes = quiet(inpainting=1).draw(1)(edited, mask, ONE)
    new = covered & ~mask
    assert new.any()
    assert len(boxes) == 2
    changed = (np.asarray(image) != np.asarray(edited)).any(axis=-1)
    assert changed.any()
    assert not (changed & ~covered).any()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"vision-lowrank\[manipulation\]"):
        ImdlAugmentation()
    assert quiet().draw(0)(real)[0] == real


def test_light_follows_its_formula_and_turns_are_numpys():
    real, _, mask = twins()
    rng = np.random.default_rng(9)
    brightness, contrast = np.random.default_rng(9).uniform(-0.1, 0.1, size=2)
    lit = np.asarray(quiet(light=0.1).draw(rng)(real)[0], dtype=np.float64)
    expected = (np.asarray(real) * (1 + contrast) + 255 * brightness).clip(0, 255)
    assert np.abs(lit - expected).max() < 0.51
    shapes = set()
    for seed in range(20):
        turned, moved, _ = quiet(turned=1).draw(seed)(real, mask)
        (quarters,) = [k for k in range(4) if np.array_equal(np.rot90(np.asarray(real), k), np.asarray(turned))]
        np.testing.assert_array_equal(moved, np.rot90(mask, quarters))
        shapes.add(quarters)
    assert shapes == {1, 2, 3}


def test_labels_follow_masks_and_tiny_pictures_work():
    nothing, something = np.zeros((2, 2), dtype=bool), np.eye(2, dtype=bool)
    assert [label_of(REAL, mask) for mask in (None, nothing, something)] == [REAL, REAL, EDITED]
    assert [label_of(label, nothing) for label in (EDITED, SYNTHETIC)] == [EDITED, SYNTHETIC]
    for seed in range(5):
        for recipe in AUGMENTATIONS:
            image, mask, _ = augmentation(recipe).draw(seed)(Image.new("RGB", (1, 1)), np.ones((1, 1), dtype=bool))
            assert image.size == (1, 1)
            assert mask.all()
    with pytest.raises(UserError, match="Did you mean 'twins'"):
        augmentation("twin")
