"""Pairs of views: where a cell of the first view lies in the second, checked against pixels and by brute force."""

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.data.regions import (
    Layer,
    RegionsConfig,
    _drawn,
    _places,
    apply,
    cell_centres,
    cut_blob,
    inverse,
    regions,
    warped,
)

SIDE, CELL = 48, 8


@pytest.fixture(scope="module")
def pairs():
    return regions(RegionsConfig(test_pairs=8))


def smooth(seed=0, size=(120, 90)):
    """A picture whose colours say where one is: red is x, green is y."""
    ys, xs = np.mgrid[: size[1], : size[0]]
    blue = np.full_like(xs, 40 + seed)
    return Image.fromarray(np.stack([2 * xs, 2 * ys, blue], axis=-1).astype(np.uint8)).convert("RGBA")


def affine(scale, angle, shift):
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([linear, np.array(shift, dtype=float)[:, None]], axis=1)


def test_the_inverse_of_a_map():
    there = affine(0.7, 0.4, (12, -3))
    points = np.random.default_rng(0).uniform(0, 48, (20, 2))
    np.testing.assert_allclose(apply(inverse(there), apply(there, points)), points, atol=1e-9)


@pytest.mark.parametrize("scale", [0.6, 1.0, 2.4])
def test_a_layer_is_drawn_where_its_map_says(scale):
    there = affine(scale, 0.3, (25, 2) if scale < 2 else (20, -10))
    drawn = np.asarray(warped(smooth(), there, SIDE)).astype(float)
    centres = np.stack(np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5), axis=-1)
    source = apply(there, centres)
    inside = ((source > 3) & (source < np.array([117, 87]))).all(axis=-1)
    assert inside.sum() > 300
    np.testing.assert_allclose(drawn[inside, :2], 2 * (source[inside] - 0.5), atol=2.5 * max(1, scale))


def test_places_follow_the_topmost_layer_and_nothing_hidden():
    """A small square moves over a background that stands still."""
    still = (affine(1, 0, (30, 20)),) * 2
    square = Image.new("RGBA", (16, 16), (255, 255, 255, 255))
    moved = tuple(affine(1, 0, (-left, -16)) for left in (8, 24))  # its left edge in the view
    layers = [Layer(smooth(), still), Layer(square, moved)]
    seen = [_drawn(layers, view, SIDE)[1] for view in (0, 1)]
    places = _places(layers, *seen, SIDE, CELL)
    expected = cell_centres(SIDE, CELL)
    expected[2:4, 1:3, 0] += 16  # cells of the square: columns 1 and 2, rows 2 and 3
    expected[2:4, 3:5] = np.nan  # the background under its new place
    np.testing.assert_allclose(places, expected, atol=1e-9)


def test_views_agree_at_matching_places(pairs):
    """Without changes of light, the colour at a cell and at its place is the same, up to what drawing blurs."""
    found = []
    for number in range(6):
        rng = np.random.default_rng((3, number))
        layers = pairs["test"]._scene(rng, number, SIDE)
        (one, first), (two, second) = (_drawn(layers, view, SIDE) for view in (0, 1))
        places = _places(layers, first, second, SIDE, CELL)
        seen = np.isfinite(places).all(axis=-1)
        at, there = (points[seen].astype(int) for points in (cell_centres(SIDE, CELL), np.nan_to_num(places)))
        there = np.clip(there, 0, SIDE - 1)
        colours = [np.asarray(view).astype(float)[spot[:, 1], spot[:, 0]] for view, spot in ((one, at), (two, there))]
        other = np.asarray(two).astype(float)[at[:, 1], at[:, 0]]
        found.append([np.abs(colours[0] - colours[1]).mean(), np.abs(colours[0] - other).mean()])
    matching, same_place = np.mean(found, axis=0)
    assert matching < 0.7 * same_place


def test_a_pair_is_a_function_of_its_numbers(pairs):
    one, other = (pairs["train"].pair(1, 5, 2, SIDE, CELL) for _ in range(2))
    assert np.array_equal(one.views, other.views)
    assert np.array_equal(one.places, other.places, equal_nan=True)
    assert not np.array_equal(one.views, pairs["train"].pair(1, 6, 2, SIDE, CELL).views)
    assert one.views.shape == (2, SIDE, SIDE, 3)
    assert one.places.shape == (6, 6, 2)


def test_no_photograph_and_no_emoji_is_in_two_splits(pairs):
    parts = (lambda pool: {key for key, _ in pool.photographs}, lambda pool: {row.concept for row in pool.emoji})
    for part in parts:
        train, val, test = (part(pairs[split].pool) for split in ("train", "val", "test"))
        assert all((train, val, test))
        assert train.isdisjoint(val | test)
        assert val.isdisjoint(test)


def test_blobs_have_soft_outlines():
    blob = cut_blob(smooth().convert("RGB"), np.random.default_rng(1))
    alpha = np.asarray(blob.getchannel("A"))
    assert {0, 255} <= set(np.unique(alpha).tolist())
    assert 0.15 < (alpha >= 128).mean() < 0.8
    assert len(np.unique(alpha)) > 10
