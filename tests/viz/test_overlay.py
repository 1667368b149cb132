import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from vision_lowrank.data.boxes import Boxes
from vision_lowrank.viz.overlay import heat_levels, overlay
from vision_lowrank.viz.viridis import VIRIDIS


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8))


def heat():
    return np.linspace(0, 1, 300 * 400, dtype=np.float32).reshape(300, 400)


def test_it_is_the_mixture_of_picture_and_colours(picture):
    shown = np.asarray(overlay(picture, heat(), Boxes(), "")).astype(np.float64)
    colours = 255 * mpl.colormaps["viridis"](np.rint(255 * heat().astype(np.float64)).astype(int))[..., :3]
    expected = 0.55 * np.asarray(picture) + 0.45 * colours
    assert np.abs(shown - expected).max() <= 1.5


def test_levels_are_rounded_and_clipped():
    assert heat_levels(np.array([[-1.0, 0.0, 0.5, 1.0, 2.0]])).tolist() == [[0, 0, 128, 255, 255]]
    assert heat_levels(np.array([[1 / 255, 1.4 / 255, 1.6 / 255]], dtype=np.float32)).tolist() == [[1, 1, 2]]


def test_boxes_are_drawn_where_they_are_and_nowhere_else(picture):
    plain = np.asarray(overlay(picture, heat(), Boxes(), ""))
    shown = np.asarray(overlay(picture, heat(), Boxes([(100.0, 50.0, 180.0, 120.0)], [0.5]), ""))
    assert (shown[50, 100:180] == 255).all()
    assert (shown[119, 100:180] == 255).all()
    assert (shown[50:120, 100] == 255).all()
    assert (shown[50:120, 179] == 255).all()
    outside = np.ones((300, 400), dtype=bool)
    outside[48:122, 98:182] = False
    assert np.array_equal(shown[outside], plain[outside])


def test_boxes_without_scores_are_drawn_without_text(picture):
    box = [(100.0, 50.0, 180.0, 120.0)]
    bare, told = (np.asarray(overlay(picture, heat(), boxes, "")) for boxes in (Boxes(box), Boxes(box, [0.5])))
    assert (bare[50, 100:180] == 255).all()
    inside = np.zeros((300, 400), dtype=bool)
    inside[52:118, 102:178] = True
    assert np.array_equal(bare[~inside], told[~inside])
    assert not np.array_equal(bare[inside], told[inside])
    plain = np.asarray(overlay(picture, heat(), Boxes(), ""))
    assert np.array_equal(bare[54:116, 104:176], plain[54:116, 104:176])


@pytest.mark.parametrize("box", [(-50, -50, 9000, 9000), (399.9, 299.9, 400, 300), (10, 10, 10, 10), (50, 50, 20, 20)])
def test_boxes_at_and_beyond_the_rim_are_drawn_without_error(picture, box):
    assert overlay(picture, heat(), Boxes([box], [1.0]), "x").size == picture.size


def test_the_legend_lies_where_the_map_is_lower(picture):
    rising = overlay(picture, heat(), Boxes(), "edited 93%")
    falling = overlay(picture, heat()[::-1], Boxes(), "edited 93%")
    dark = (16, 20, 24)
    assert rising.getpixel((0, 0)) == dark
    assert rising.getpixel((0, 299)) != dark
    assert falling.getpixel((0, 299)) == dark
    assert falling.getpixel((0, 0)) != dark


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (20, 20), (127, 90)])
def test_any_size_is_kept(size):
    picture = Image.new("RGB", size)
    values = np.zeros((size[1], size[0]), dtype=np.float32)
    assert overlay(picture, values, Boxes([(0, 0, size[0], size[1])], [0.9]), "edited 93%").size == size


def test_the_colours_are_those_of_matplotlib():
    colours = mpl.colormaps["viridis"](np.arange(256), bytes=True)[:, :3]
    assert colours.tobytes() == VIRIDIS
