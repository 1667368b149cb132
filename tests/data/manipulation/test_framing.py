from math import ceil

import numpy as np
import pytest
from fixtures.slender import slender, watch_resizing
from PIL import Image, ImageDraw
from scipy.ndimage import map_coordinates

from vision_lowrank.data.manipulation.framing import PADDING, Framing, heat_map, token_centres, token_targets
from vision_lowrank.errors import ArtefactError, UserError

MODES = ["resize", "pad", "tile"]
SIZES = [(1, 1), (1, 50), (300, 6), (64, 64), (101, 37), (640, 427)]
BOX = (61, 40, 270, 133)  # of a 400 x 170 picture


def drawn(width=400, height=170, box=BOX):
    picture = Image.new("RGB", (width, height), "black")
    ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
    return picture


def mask_of(width=400, height=170, box=BOX):
    return np.asarray(drawn(width, height, box))[..., 0] > 0


def extent(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_any_picture_gives_square_tiles_that_cover_it(mode, size):
    framing = Framing(mode, 56)
    rectangles = framing.rectangles(*size)
    assert [tile.size for tile in framing.tiles(Image.new("RGB", size))] == [(56, 56)] * len(rectangles)
    centres, inside = token_centres(rectangles, (4, 3), *size)
    assert inside.any()
    assert (centres[inside] >= 0).all()
    assert (centres[inside] <= 1).all()
    everywhere = token_targets(np.ones(size[::-1], dtype=bool), rectangles, (4, 3))
    np.testing.assert_allclose(everywhere, inside)
    np.testing.assert_allclose(heat_map(everywhere, rectangles, (4, 3), *size), 1, rtol=1e-6)


def test_the_grid_shrinks_least_and_the_whole_picture_is_the_last_tile():
    def shape(width, height, **options):
        rectangles = Framing("tile", 100, **options).rectangles(width, height)
        return len(set(rectangles[:-1, 0])) or 1, len(set(rectangles[:-1, 1])) or 1

    assert shape(100, 100) == (1, 1)
    assert shape(125, 60) == (1, 1)  # shrinks by no more than a quarter
    assert shape(126, 60) == (2, 1)
    assert shape(4000, 3000) == (3, 2)
    assert shape(3000, 4000) == (2, 3)
    assert shape(1000, 1000) == (2, 2)  # 3 x 2 has as long sides, and more tiles
    assert shape(5000, 100) == (6, 1)
    assert shape(5000, 100, max_tiles=1) == (1, 1)
    assert Framing("tile", 100).rectangles(300, 200)[-1].tolist() == [0, 0, 300, 200]
    assert len(Framing("tile", 100).rectangles(100, 100)) == 1


@pytest.mark.parametrize("size", [(90, 41), (41, 90), (7, 300), (20, 13), (64, 64)])
def test_a_padded_tile_is_the_padded_square_resized(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    square = Image.new("RGB", (max(size), max(size)), PADDING)
    square.paste(picture)
    expected = square.resize((48, 48), Image.Resampling.BICUBIC)
    (tile,) = Framing("pad", 48).tiles(picture)
    columns, rows = (ceil(48 * length / max(size)) for length in size)
    tile, expected = np.asarray(tile, dtype=int), np.asarray(expected, dtype=int)
    assert np.abs(tile - expected)[:rows, :columns].max() <= 1
    # Beyond the picture the filter's ringing is left out.
    assert (tile[rows:] == PADDING).all()
    assert (tile[:, columns:] == PADDING).all()


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("mode", ["resize", "pad", "tile"])
def test_slender_pictures_need_bounded_memory(monkeypatch, mode, upright):
    watch_resizing(monkeypatch)
    tiles = [np.asarray(tile) for tile in Framing(mode, 32).tiles(slender(upright))]
    assert {tile.shape for tile in tiles} == {(32, 32, 3)}
    line = tiles[-1][:, 0, 0] if upright else tiles[-1][0, :, 0]
    if mode == "pad":
        assert {tuple(colour) for colour in tiles[-1].reshape(-1, 3)} == {PADDING}  # a pixel of 62,500 is not seen
    else:
        assert ((line > 127) == ([False] * 8 + [True] * 16 + [False] * 8)).all()


def test_resized_tiles_are_the_parts_of_the_picture():
    picture = drawn()
    (tile,) = Framing("resize", 40).tiles(picture)
    assert tile == picture.resize((40, 40), Image.Resampling.BICUBIC)
    framing = Framing("tile", 100)
    rectangles = framing.rectangles(*picture.size)
    assert len(rectangles) == 7
    for tile, rectangle in zip(framing.tiles(picture), rectangles, strict=True):
        assert tile == picture.resize((100, 100), Image.Resampling.BICUBIC, box=tuple(rectangle))


@pytest.mark.parametrize("mode", MODES)
def test_a_drawn_box_is_found_in_the_tiles_at_its_pixels(mode):
    framing = Framing(mode, 224)
    found = []
    for tile, (x0, y0, x1, y1) in zip(framing.tiles(drawn()), framing.rectangles(400, 170), strict=True):
        white = np.asarray(tile.convert("L")) > 127
        if white.any():
            left, top, right, bottom = np.array(extent(white)) / 224
            found.append((x0 + left * (x1 - x0), y0 + top * (y1 - y0), x0 + right * (x1 - x0), y0 + bottom * (y1 - y0)))
    found = np.array(found)
    np.testing.assert_allclose([*found[:, :2].min(axis=0), *found[:, 2:].max(axis=0)], BOX, atol=1)
    if mode == "tile":
        assert len(found) > 2
        np.testing.assert_allclose(found[-1], BOX, atol=1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("width", "height", "box"), [(400, 170, BOX), (170, 400, (30, 55, 121, 301))])
def test_a_box_comes_back_from_its_tokens_at_its_pixels(mode, width, height, box):
    rectangles, grid = Framing(mode, 224).rectangles(width, height), (64, 64)
    targets = token_targets(mask_of(width, height, box), rectangles, grid)
    heat = heat_map(targets, rectangles, grid, width, height)
    np.testing.assert_allclose(extent(heat > 0.5), box, atol=1)
    centres, inside = token_centres(rectangles, grid, width, height)
    full = centres[inside & (targets == 1)] * (width, height)
    assert len(full)
    assert (full > box[:2]).all()
    assert (full < box[2:]).all()
    half = width / 64  # of the widest token there is: a whole picture's
    np.testing.assert_allclose([*full.min(axis=0), *full.max(axis=0)], box, atol=1.5 * max(half, height / 64))


@pytest.mark.parametrize("mode", MODES)
def test_targets_are_exact_shares_of_area(mode):
    mask = np.random.default_rng(1).random((21, 12)) < 0.4
    rectangles, grid = Framing(mode, 4, max_tiles=4).rectangles(12, 21), (5, 4)
    # 20 x 20 points per pixel put every edge of a cell between points.
    fine = np.kron(mask, np.ones((20, 20)))
    expected = []
    for rectangle in rectangles * 20:
        x, y = np.linspace(*rectangle[0::2], 5), np.linspace(*rectangle[1::2], 6)
        assert np.allclose(x, x.round())
        assert np.allclose(y, y.round())
        x, y = x.round().astype(int), y.round().astype(int)
        cells = [fine[y[j] : y[j + 1], x[i] : x[i + 1]] for j in range(5) for i in range(4)]
        expected += [cell.mean() if cell.size else 0.0 for cell in cells]
    np.testing.assert_allclose(token_targets(mask, rectangles, grid), expected, atol=1e-6)


def test_centres_are_the_middles_of_what_is_visible():
    centres, inside = token_centres(Framing("pad", 8).rectangles(100, 30), (2, 4), 100, 30)
    # A cell is 25 x 50: the first row shows 30 of its 50 pixels, the second none.
    np.testing.assert_allclose(centres[:4], [(0.125, 0.5), (0.375, 0.5), (0.625, 0.5), (0.875, 0.5)])
    assert inside.tolist() == [True] * 4 + [False] * 4
    assert (centres[4:, 1] > 1).all()
    centres, _ = token_centres(Framing("tile", 50).rectangles(100, 50), (1, 1), 100, 50)
    np.testing.assert_allclose(centres, [(0.25, 0.5), (0.75, 0.5), (0.5, 0.5)])


def test_heat_is_bilinear_and_goes_on_over_seams():
    values = np.random.default_rng(2).random((6, 5))
    heat = heat_map(values.ravel(), np.array([[0.0, 0.0, 83, 46]]), (6, 5), 83, 46)
    y, x = np.mgrid[:46, :83] + 0.5
    at = [y * 6 / 46 - 0.5, x * 5 / 83 - 0.5]
    np.testing.assert_allclose(heat, map_coordinates(values, at, order=1, mode="nearest"), atol=1e-5)
    # The same tokens seen as two tiles side by side.
    wide = np.random.default_rng(3).random((3, 8))
    two = np.concatenate([wide[:, :4].ravel(), wide[:, 4:].ravel()])
    one = heat_map(wide.ravel(), np.array([[0.0, 0.0, 80, 40]]), (3, 8), 80, 40)
    np.testing.assert_allclose(heat_map(two, np.array([[0.0, 0, 40, 40], [40, 0, 80, 40]]), (3, 4), 80, 40), one, 1e-5)


def test_tiles_and_the_whole_picture_have_one_vote_each_and_padding_none():
    rectangles = Framing("tile", 50).rectangles(100, 50)
    heat = heat_map(np.array([0.2, 0.2, 0.6]), rectangles, (1, 1), 100, 50)
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat[10:40, 20:80], 0.4, atol=0.07)
    padded = Framing("pad", 8).rectangles(100, 30)
    rubbish = np.array([0.5] * 4 + [1e6] * 4)
    np.testing.assert_allclose(heat_map(rubbish, padded, (2, 4), 100, 30), 0.5, rtol=1e-6)


def test_a_framing_is_stored_checked_and_refused():
    for framing in (Framing("pad", 1024), Framing("tile", 448, max_tiles=4)):
        assert Framing.from_dict(framing.to_dict()) == framing
        framing.check(framing)
    with pytest.raises(ArtefactError, match="'pad' at 1024 pixels, but 'resize' at 1024 pixels") as caught:
        Framing("pad", 1024).check(Framing("resize", 1024))
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="Did you mean 'resize'"):
        Framing("resized", 8)  # pyrefly: ignore
    with pytest.raises(UserError, match="size >= 1"):
        Framing("pad", 0)
    with pytest.raises(UserError, match="Did you mean 'max_tiles'"):
        Framing.from_dict({"mode": "tile", "size": 8, "max_tile": 3})
    with pytest.raises(UserError, match="lacks 'size'"):
        Framing.from_dict({"mode": "tile"})
