"""Boxes drawn into frames, the strip of frames, and the page of a tracked video."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.viz.tracked import COLOURS, STRIP, Strip, draw_tracks, write_track_page

ABOUT = {"title": "Tracking in a.mp4", "lead": "2 targets.", "facts": {"source": "a.mp4"}, "notes": []}
FRAME = np.full((360, 640, 3), 128, dtype=np.uint8)
BOX, SURE = np.array([[100.0, 80, 200, 160]]), np.array([0.75])


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def near(picture, colour):
    return np.abs(picture.astype(int) - rgb(colour)).sum(axis=2) < 90


def strip_of(count, **options):
    strip = Strip(**options)
    for number in range(count):
        strip.add(number, FRAME, BOX, SURE)
    return strip


def test_a_box_is_drawn_where_it_is_and_the_frame_is_kept():
    frame = FRAME.copy()
    ys, xs = np.where(near(draw_tracks(frame, BOX, SURE), COLOURS[0])[80:])  # below the number
    assert (xs.min(), xs.max(), ys.min() + 80, ys.max() + 80) == (100, 300, 80, 240)
    assert np.array_equal(frame, FRAME)


def test_targets_have_colours_and_unsure_ones_are_hidden():
    boxes, scores = np.array([[100.0, 80, 200, 160], [360, 80, 200, 160]]), np.array([0.9, 0.2])
    both, one = draw_tracks(FRAME, boxes, scores), draw_tracks(FRAME, boxes, scores, hide_below=0.5)
    assert near(both, COLOURS[1]).sum() > 100
    assert not near(one[:, 340:], COLOURS[1]).any()
    assert near(one, COLOURS[0]).sum() > 100


@pytest.mark.parametrize("box", [[-50, -50, 20, 20], [630, 350, 50, 50], [10, 10, 0, 0], [0, 0, 640, 360]])
def test_any_box_can_be_drawn(box):
    assert draw_tracks(FRAME, np.array([box], dtype=float), SURE).shape == FRAME.shape


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 60, 100, 1000])
def test_a_strip_is_even_and_has_first_and_last(count):
    numbers = [number for number, _ in strip_of(count).pictures()]
    assert numbers[0] == 0
    assert numbers[-1] == count - 1
    assert len(numbers) <= STRIP
    assert len(numbers) >= min(count, STRIP // 2)
    assert len(set(np.diff(numbers[:-1]))) <= 1  # the last comes when it comes


def test_boxes_of_a_strip_are_drawn_after_it_is_made_small():
    (_, uri), *_ = strip_of(1).pictures()
    small = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert small.shape == (225, 400, 3)
    edge = near(small[80:140, 50:80], COLOURS[0]).sum(axis=1)  # the left edge, half way across the picture
    assert np.median(edge) >= 2


def test_the_page_shows_the_scores_from_the_second_frame_on(tmp_path):
    scores = np.array([[1.0, 1.0], [0.5, 0.25], [0.5, 0.75]])
    page = write_track_page(tmp_path / "track.html", ABOUT, scores, strip_of(3)).read_text()
    points = re.findall(r'<polyline points="([^"]*)"', page)
    assert points == ["450.0,80.0 900.0,80.0", "450.0,120.0 900.0,40.0"]
    assert re.findall(r"mean score of target \d</th><td>([0-9.]+)", page) == ["0.50", "0.50"]
    assert page.count('class="key"') == 2
    assert page.count("data:image/jpeg;base64,") == 3


def test_the_page_loads_nothing_and_names_are_text(tmp_path):
    evil = '<script>alert("x")</script>'
    about = ABOUT | {"title": evil, "facts": {evil: evil}, "notes": [evil]}
    page = write_track_page(tmp_path / "track.html", about, np.ones((1, 1)), strip_of(1)).read_text()
    assert evil not in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", page)
    assert "<polyline" not in page  # one frame, which was given
