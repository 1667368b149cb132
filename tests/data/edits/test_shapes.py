"""Outlines have the area they were asked for, soft edges their width, and moves are exact."""

import numpy as np
import pytest
from scipy import ndimage

from vision_lowrank.data.edits import shapes


def test_regions_have_the_share_asked_for(monkeypatch):
    monkeypatch.setattr(shapes, "MARGIN", 0.5)  # in the middle: nothing is lost beyond the border
    for seed in range(20):
        mask = shapes.region(np.random.default_rng(seed), (400, 300), 0.1, 0.1, two=0)
        assert mask.mean() == pytest.approx(0.1, rel=0.04)


def test_regions_have_one_or_two_parts():
    counts = []
    for seed in range(40):
        mask = shapes.region(np.random.default_rng(seed), (200, 200), 0.02, 0.02, two=1.0)
        counts.append(ndimage.label(mask)[1])
    assert set(counts) <= {1, 2}  # one where the parts touch
    assert counts.count(2) > 20


@pytest.mark.parametrize("width", range(4, 13))
def test_soft_edges_reach_no_farther_than_their_width(width):
    mask = shapes.region(np.random.default_rng(width), (96, 80), 0.1, 0.3)
    alpha = shapes.soft(mask, width)
    assert alpha.max() <= 1
    assert not alpha[~ndimage.binary_dilation(mask, np.ones((2 * width + 1,) * 2))].any()
    assert (alpha[ndimage.binary_erosion(mask, np.ones((2 * width + 1,) * 2))] == 1).all()


def test_moves_are_exact():
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    middle = np.array([20.0, 20.0])
    shifted = shapes.moved(picture, middle, np.array([25.0, 17.0]))
    assert np.array_equal(shifted[:-3, 5:], picture[3:, :-5])
    assert not shifted[-3:].any()
    assert np.array_equal(shapes.moved(picture, middle, middle, mirror=True), picture[:, ::-1])
    turned = shapes.moved(picture, middle, middle, angle=90).astype(int)
    assert np.abs(turned - np.rot90(picture, -1)).max() <= 1  # bicubic weights round


def test_scaling_keeps_the_centre():
    mask = np.zeros((60, 60), dtype=bool)
    mask[20:30, 10:30] = True
    centre = shapes.centre_of(mask)
    assert centre.tolist() == [20, 25]
    larger = shapes.moved(mask, centre, centre, scale=2)
    assert larger[15:35, :40].all()
    assert larger.sum() == 20 * 40
