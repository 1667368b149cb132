import numpy as np
import pytest
import torch
from PIL import Image

from vision_lowrank.data.frames import as_box, as_frame
from vision_lowrank.errors import DataError, UserError

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("given", "color"),
    [
        (RGB, "rgb"),
        (RGB[..., ::-1], "bgr"),
        (np.dstack([RGB, np.full((6, 5), 9, np.uint8)]), "rgb"),
        (np.dstack([RGB[..., ::-1], np.full((6, 5), 9, np.uint8)]), "bgr"),
        (RGB.astype(np.uint16) * 257, "rgb"),
        (RGB / 255, "rgb"),
        (torch.from_numpy(RGB).permute(2, 0, 1), "rgb"),
        (torch.from_numpy(RGB).permute(2, 0, 1).float() / 255, "rgb"),
        (Image.fromarray(RGB), "rgb"),
    ],
)
def test_every_kind_of_frame_is_the_same_frame(given, color):
    found = as_frame(given, color)
    assert found.dtype == np.uint8
    assert np.array_equal(found, RGB)


def test_grey_frames_have_three_equal_channels():
    for grey in (RGB[..., 0], RGB[..., :1], RGB[..., 0].astype(np.uint16) * 257):
        assert np.array_equal(as_frame(grey), np.repeat(RGB[..., :1], 3, axis=2))


def test_files_are_read(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    assert np.array_equal(as_frame(tmp_path / "a.png"), RGB)
    with pytest.raises(DataError):
        as_frame(tmp_path / "missing.png")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("list", "list is no frame"),
        (np.zeros((4, 4, 2), np.uint8), "2 channels"),
        (np.zeros((0, 4, 3), np.uint8), "is no frame"),
        (np.zeros((4, 4, 3), np.int64), "int64 is not understood"),
        (np.full((4, 4, 3), 200.0), r"must lie in \[0, 1\]"),
    ],
)
def test_what_is_no_frame_is_said(given, words):
    with pytest.raises(UserError, match=words):
        as_frame([1, 2] if isinstance(given, str) else given)


def test_boxes_of_three_forms_are_one():
    for box, fmt in (((10, 20, 30, 40), "xywh"), ((10, 20, 40, 60), "xyxy"), ((25, 40, 30, 40), "cxcywh")):
        assert as_box(box, fmt, (100, 100)).tolist() == [10, 20, 40, 60]
    assert as_box((-5, 90, 20, 30), "xywh", (100, 100)).tolist() == [0, 90, 15, 100]
