"""Every kind of edit keeps the rules of its mask, its cues and its words."""

import sys

import numpy as np
import pytest
from scipy import ndimage
from skimage import color, data, measure

from vision_lowrank.data.edits import appearance, splice
from vision_lowrank.data.edits.base import LEAST_AREA, MAX_FEATHER, MOST_AREA, VOCABULARY, Change, Donor, shows
from vision_lowrank.data.edits.kinds import KINDS, check_kinds
from vision_lowrank.data.edits.objects import emoji_objects
from vision_lowrank.data.edits.wording import PLACES, where
from vision_lowrank.errors import DataError, UserError

PHOTOS = (data.astronaut()[40:136, 160:256].copy(), data.coffee()[150:246, 200:310].copy())
DONOR = Donor(data.chelsea()[60:180, 80:260].copy(), emoji_objects())
EXACT = ("splice-hard", "inpaint-telea", "inpaint-ns", "text-replace")


def edits(name, count=6):
    for seed in range(count):
        photo = PHOTOS[seed % 2]
        edit = KINDS[name].edit(photo, DONOR, np.random.default_rng(seed))
        if edit is not None:
            yield photo, edit


@pytest.mark.parametrize("name", KINDS)
def test_mask_rule(name):
    found = list(edits(name))
    assert len(found) >= 4
    for photo, edit in found:
        assert edit.image.dtype == np.uint8
        assert edit.image.shape == photo.shape
        assert edit.mask.shape == photo.shape[:2]
        assert LEAST_AREA <= edit.mask.mean() <= MOST_AREA
        changed = (edit.image != photo).any(axis=-1)
        feather = 0 if name in EXACT else MAX_FEATHER
        allowed = ndimage.binary_dilation(edit.mask, np.ones((2 * feather + 1,) * 2)) if feather else edit.mask
        assert not (changed & ~allowed).any()
        assert changed[edit.mask].mean() > 0.5


@pytest.mark.parametrize("name", KINDS)
def test_annotations(name):
    categories = [category for group in VOCABULARY.categories.values() for category in group]
    for _, edit in edits(name, 4):
        assert edit.category in categories
        assert edit.cues
        assert list(edit.cues) == [cue for cue in VOCABULARY.cues if cue in edit.cues]
        for cue in edit.cues:  # each cue is explained by one of its sentences, no other one is
            assert sum(sign in edit.explanation for sign in KINDS[name].signs[cue]) == 1
        for cue in set(KINDS[name].signs) - set(edit.cues):
            assert not any(sign in edit.explanation for sign in KINDS[name].signs[cue])
        place = where(edit.mask, edit.boxes if name == "text-add" else None)
        assert place in edit.prompt
        assert place in edit.explanation.lower()
        assert "{" not in edit.explanation + edit.prompt


@pytest.mark.parametrize("name", KINDS)
def test_same_seed_same_edit(name):
    one, other = (KINDS[name].edit(PHOTOS[0], DONOR, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one.image, other.image)
    assert np.array_equal(one.mask, other.mask)
    assert (one.explanation, one.prompt, one.boxes) == (other.explanation, other.prompt, other.boxes)


def test_boxes_are_the_extents_of_the_components():
    for _, edit in edits("splice-hard", 12):
        expected = {
            (float(left), float(top), float(right), float(bottom))
            for top, left, bottom, right in (
                region.bbox for region in measure.regionprops(measure.label(edit.mask)) if region.area >= 16
            )
        }
        assert set(edit.boxes) == expected


def test_text_has_one_box_around_all_letters():
    for _, edit in edits("text-add"):
        rows, columns = np.nonzero(edit.mask)
        assert edit.boxes == ((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1),)


def test_words_vary():
    explanations = {
        edit.explanation.replace(place, "").lower()
        for _, edit in edits("inpaint-telea", 12)
        for place in [where(edit.mask)]
    }
    assert len(explanations) > 6


def test_where_names_the_third():
    for row in range(3):
        for column in range(3):
            mask = np.zeros((90, 60), dtype=bool)
            mask[row * 30 + 5 : row * 30 + 25, column * 20 + 3 : column * 20 + 17] = True
            assert where(mask) == PLACES[row][column]
    mask[5:25, 3:17] = True
    assert where(mask) == "in the upper left and in the lower right"


def test_an_edit_that_does_not_show_is_none():
    flat = np.full((96, 96, 3), 128, dtype=np.uint8)
    assert KINDS["blur"].edit(flat, DONOR, np.random.default_rng(0)) is None
    assert KINDS["copy-move"].edit(flat, DONOR, np.random.default_rng(0)) is None
    mask = np.zeros((96, 96), dtype=bool)
    mask[:48, :48] = True
    assert shows(flat, Change(np.where(mask[..., None], flat + 4, flat), mask))
    assert not shows(flat, Change(np.where(mask[..., None], flat + 2, flat), mask))
    assert not shows(flat, Change(flat + 4, np.ones_like(mask)))


def test_nothing_to_paste_is_none():
    assert KINDS["splice-hard"].edit(PHOTOS[0], Donor(None, DONOR.objects), np.random.default_rng(0)) is None
    assert KINDS["paste-object"].edit(PHOTOS[0], Donor(DONOR.photo), np.random.default_rng(0)) is None


def test_splice_takes_the_donors_pixels():
    donor = Donor(np.full((96, 96, 3), (250, 0, 250), dtype=np.uint8))
    edit = KINDS["splice-hard"].edit(PHOTOS[0], donor, np.random.default_rng(0))
    assert (edit.image[edit.mask] == (250, 0, 250)).all()


def test_unknown_kind_is_refused():
    with pytest.raises(DataError, match=r"unknown kind of edit 'splice-hrd'\. Did you mean 'splice-hard'"):
        check_kinds(["splice-hrd"])
    assert check_kinds(["blur", "splice-hard", "blur"]) == ("splice-hard", "blur")


def test_opencv_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r'pip install "vision-lowrank\[manipulation\]"'):
        KINDS["inpaint-ns"].edit(PHOTOS[0], DONOR, np.random.default_rng(0))
    assert KINDS["blur"].edit(PHOTOS[0], DONOR, np.random.default_rng(0)) is not None


def test_yiq_is_the_usual_one():
    pixels = PHOTOS[0][:8, :8] / 255
    assert np.allclose(pixels @ appearance.TO_YIQ.T, color.rgb2yiq(pixels), atol=2e-3)


def test_grain_measures_noise():
    ramp = np.add.outer(np.linspace(60, 180, 96), np.linspace(0, 40, 96))[..., None].repeat(3, axis=2)
    noisy = ramp + np.random.default_rng(0).normal(0, 6, (96, 96, 1))
    assert splice.grain(np.rint(noisy).astype(np.uint8)) == pytest.approx(6, rel=0.1)


def test_an_object_has_the_light_of_its_place():
    dark, bright = (np.full((96, 96, 3), value, dtype=np.uint8) for value in (20, 230))
    lit = []
    for photo in (dark, bright):
        name, new, alpha = splice.placed_object(photo, DONOR, np.random.default_rng(1), (48, 48), 0.5)
        lit.append((name, new[alpha > 0.5].mean()))
    assert lit[0][0] == lit[1][0]
    assert lit[0][1] < lit[1][1]
