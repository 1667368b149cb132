import numpy as np
import pytest
import torch

from vision_lowrank.data.geometry import CropMap, cell_mask, channel_means, draw_crop


def ramp(height=60, width=80):
    """A frame whose red is its column and whose green is its row."""
    frame = np.zeros((height, width, 3), dtype=np.uint8)
    frame[..., 0], frame[..., 1] = np.arange(width), np.arange(height)[:, None]
    return frame


@pytest.mark.parametrize("box", [(20, 15, 44, 35), (-3, 2, 18, 20), (60, 40, 90, 70)])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_what_is_drawn_lies_where_the_effective_map_says(box, factor):
    frame, fill = ramp(), np.array([7.0, 8.0, 9.0])
    crop, drawn = draw_crop(frame, CropMap.around(np.array(box, float), factor, (48, 40)), (48, 40), fill)
    ys, xs = torch.where(crop[2] == 0)  # blue is 0 in the frame and 9 outside
    assert len(ys)
    places = np.stack([xs.numpy() + 0.5, ys.numpy() + 0.5], axis=1)
    source = (places - drawn.shift) / drawn.scale - 0.5  # pixel numbers in the frame
    inner = ((source > 1) & (source < np.array([78, 58]))).all(axis=1)
    inner &= (xs.numpy() > xs.min().item() + 1) & (xs.numpy() < xs.max().item() - 1)
    inner &= (ys.numpy() > ys.min().item() + 1) & (ys.numpy() < ys.max().item() - 1)
    found = crop[:2, ys, xs].numpy().T[inner]
    np.testing.assert_allclose(found, source[inner], rtol=0, atol=1e-3)


def test_the_effective_map_is_close_to_what_was_asked():
    box = np.array([20.3, 15.7, 44.1, 35.2])
    wanted = CropMap.around(box, 2.0, (64, 64))
    _, drawn = draw_crop(ramp(), wanted, (64, 64), np.zeros(3))
    assert np.abs(wanted.to_crop(box) - drawn.to_crop(box)).max() < 2
    assert drawn.to_frame(drawn.to_crop(box)) == pytest.approx(box)


def test_nothing_but_colour_lies_outside():
    crop, drawn = draw_crop(ramp(), CropMap.around(np.array([500.0, 500, 520, 520]), 2.0, (8, 8)), (8, 8), np.arange(3))
    assert torch.equal(crop, torch.arange(3.0).view(3, 1, 1).expand(3, 8, 8))
    assert drawn.scale[0] == pytest.approx(0.2)


def test_a_crop_that_is_the_frame_is_the_frame():
    frame = ramp(40, 40)
    crop, drawn = draw_crop(frame, CropMap.around(np.array([0.0, 0, 40, 40]), 1.0, (40, 40)), (40, 40), np.zeros(3))
    assert np.array_equal(crop.permute(1, 2, 0).numpy(), frame)
    assert drawn.scale.tolist() == [1, 1]


def test_means_and_masks():
    assert channel_means(ramp()) == pytest.approx([39.5, 29.5, 0])
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    assert np.array_equal(channel_means(noise), noise.reshape(-1, 3).mean(axis=0, dtype=np.float64))
    mask = cell_mask(np.array([8.0, 8, 16, 17]), (4, 4), (8, 8))
    assert np.argwhere(mask).tolist() == [[1, 1], [2, 1]]
