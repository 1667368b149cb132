"""Clips whose target is a region of a photograph: boxes against pixels, and what they are a function of."""

import numpy as np
import pytest

import vision_lowrank.data.photo_regions as own
from vision_lowrank.data.photo_regions import PhotoRegionsConfig, photo_regions
from vision_lowrank.data.regions import apply, inverse


@pytest.fixture(scope="module")
def splits():
    return photo_regions(PhotoRegionsConfig(train_clips=50, test_clips=3))


def test_points_of_the_region_look_alike_in_all_frames(splits, monkeypatch):
    """Points well inside the frames have the same colour wherever they are shown, if light does not change."""
    monkeypatch.setattr(own, "developed", lambda picture, rng, strength: np.asarray(picture))
    gaps, shuffled = [], []
    for number in range(12):
        clip = splits.train[number]
        frames = [clip.frame(index).astype(float) for index in range(len(clip))]
        left, top, width, height = clip.boxes[0]
        grid = np.stack(np.meshgrid(*[np.linspace(0.25, 0.75, 5)] * 2), axis=-1).reshape(-1, 2)
        points = np.array([left, top]) + grid * [width, height]
        source = apply(clip.views.maps[0], points)
        for index in range(1, len(clip)):
            there = apply(inverse(clip.views.maps[index]), source)
            inside = np.all([(each > 1) & (each < own.SIDE - 1) for each in (there, points)], axis=(0, 2))
            one = frames[0][points[inside, 1].astype(int), points[inside, 0].astype(int)]
            other = frames[index][there[inside, 1].astype(int), there[inside, 0].astype(int)]
            gaps += np.abs(one - other).mean(axis=1).tolist()
            shuffled += np.abs(one - other[::-1]).mean(axis=1).tolist()
    assert np.median(gaps) < 10 < np.median(shuffled)


def test_the_box_is_the_smallest_around_the_region(splits):
    for number in range(5):
        clip = splits.train[number]
        corners = [apply(inverse(each), apply(clip.views.maps[0], _corners(clip))) for each in clip.views.maps]
        for box, seen in zip(clip.boxes, corners, strict=True):
            np.testing.assert_allclose(box[:2], seen.min(axis=0), atol=1e-6)
            np.testing.assert_allclose(box[2:], seen.max(axis=0) - seen.min(axis=0), atol=1e-6)


def _corners(clip):
    """Draw the region again from the clip's seed: its corners in frame 0."""
    rng = np.random.default_rng(clip._seed)
    rng.integers(len(clip._pool.photographs))
    photo = clip._pool.photograph(clip.views.photograph)
    for _ in range(own.TRIES):
        middle, sides = own._draw_region(rng, photo.size)
        if own._contrast(photo, middle, sides) >= own.FLAT:
            break
    corners = middle + sides * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    return apply(inverse(clip.views.maps[0]), corners)


def test_a_clip_is_a_function_of_its_number(splits):
    again = photo_regions(PhotoRegionsConfig(train_clips=50, test_clips=3))
    np.testing.assert_array_equal(splits.train[7].boxes, again.train[7].boxes)
    np.testing.assert_array_equal(splits.train[7].frame(3), again.train[7].frame(3))
    assert not np.array_equal(splits.train[7].boxes, splits.train[8].boxes)
    other = photo_regions(PhotoRegionsConfig(train_clips=50, test_clips=3, seed=2))
    assert not np.array_equal(splits.train[7].boxes, other.train[7].boxes)
    assert splits.train.hash != other.train.hash


def test_no_photograph_is_in_two_splits(splits):
    keys = [{key for key, _ in each.clips.pool.photographs} for each in (splits.train, splits.val)]
    keys.append({key for key, _ in splits.tests["photo_regions"].clips.pool.photographs})
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]


def test_frames_and_numbers_end(splits):
    clip = splits.train[0]
    assert clip.frame(len(clip) - 1).shape == (own.SIDE, own.SIDE, 3)
    with pytest.raises(IndexError):
        clip.frame(len(clip))
    with pytest.raises(IndexError):
        splits.val.clips[3]
