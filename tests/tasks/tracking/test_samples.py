"""Training samples: crops, masks and boxes that belong together, and the augmentation."""

import numpy as np
import pytest
import torch

from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.data.tracking.pair_crops import SearchJitter
from vision_lowrank.data.tracking.pairs import PairSource
from vision_lowrank.data.transforms import Preprocess
from vision_lowrank.tasks.tracking import samples as own
from vision_lowrank.tasks.tracking.augment import Augmentation, augment_pair, jitter_colours
from vision_lowrank.tasks.tracking.cropping import Cropping
from vision_lowrank.tasks.tracking.samples import PairSamples

PLAIN = Preprocess(96, (0, 0, 0), (1, 1, 1))


@pytest.fixture(scope="module")
def source():
    data = emoji_scenes(EmojiScenesConfig(frames=6, size=(160, 120), train_clips=20))
    return PairSource([data.train])


def samples(source, **more):
    jitter = SearchJitter(4.0, (96, 96), 4)
    options = {"jitter": jitter, "augmentation": Augmentation(), "length": 16, "seed": 1} | more
    return PairSamples(source, Cropping(96, 48, 4.0, 2.0), ((12, 12), (6, 6)), PLAIN, **options)


def test_a_sample_is_a_function_of_its_position(source):
    one, other = samples(source)[3, 0], samples(source)[3, 9]
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["x"], samples(source)[4, 0]["x"])
    assert not torch.equal(one["x"], samples(source, seed=2)[3, 0]["x"])


def test_shapes_and_ranges(source):
    for number in range(8):
        sample = samples(source)[number, 0]
        assert {name: tuple(value.shape) for name, value in sample.items()} == {
            "z": (3, 48, 48), "x": (3, 96, 96), "mask": (6, 6), "box": (4,), "positives": (12, 12),
        }  # fmt: skip
        low, high = sample["box"][:2], sample["box"][2:]
        assert (low >= 0).all()
        assert (high <= 1).all()
        assert ((high - low) * 96 >= 4 - 1e-3).all()
        expected = torch.zeros(12, 12, dtype=torch.bool)
        left, top = (low * 12).floor().int().tolist()
        right, bottom = (high * 12 + 1 - 1e-4).floor().int().tolist()
        expected[top:bottom, left:right] = True
        assert torch.equal(sample["positives"], expected)


def test_the_target_is_where_the_box_is(source, monkeypatch):
    """Without augmentation, the mean colour inside the box is the target's in both crops, not the background's."""
    monkeypatch.setattr(own, "augment_pair", lambda z, x, mask, box, generator, how: (z, x, mask, box))
    near = []
    for number in range(16):
        sample = samples(source)[number, 0]
        left, top, right, bottom = (sample["box"] * 96).round().int().tolist()
        inside = sample["x"][:, top : max(bottom, top + 1), left : max(right, left + 1)].mean(dim=(1, 2))
        shown = sample["mask"].float().repeat_interleave(8, 0).repeat_interleave(8, 1)
        template = (sample["z"] * shown).sum(dim=(1, 2)) / shown.sum()
        outside = sample["x"].mean(dim=(1, 2))
        near.append([float((inside - template).abs().mean()), float((outside - template).abs().mean())])
    found = np.mean(near, axis=0)
    assert found[0] < found[1]


def test_flips_carry_mask_and_box_along():
    torch.manual_seed(0)
    z, x = torch.zeros(3, 12, 12), torch.zeros(3, 24, 24)
    z[:, :, :4], x[:, 5:9, 2:8] = 1, 1
    mask, box = torch.zeros(3, 3, dtype=torch.bool), np.array([2.0, 5, 8, 9])
    mask[:, 0] = True
    flipped = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        (one,), two, (cells,), moved = augment_pair(z[None], x, mask[None], box, generator)
        left, top, right, bottom = (int(v) for v in moved)
        assert (top, bottom) == (5, 9)
        assert right - left == 6
        bright = two[:, top:bottom, left:right].mean() > two[:, :, :].mean()
        dark = two[:, top:bottom, left:right].mean() < two[:, :, :].mean()  # solarised
        assert bright or dark or torch.allclose(two, two.mean(), atol=0.5)
        column = int(cells.float().sum(dim=0).argmax())
        assert (one[:, :, 4 * column : 4 * column + 4].mean() - one.mean()).abs() > 0.1 or one.std() < 0.2
        flipped.add((column == 2, left != 2))
    assert len(flipped) == 4  # each crop on its own


def test_colours_change_by_at_most_two_fifths():
    grey = torch.full((3, 4, 4), 0.5)
    values = [float(jitter_colours(grey, torch.Generator().manual_seed(seed)).mean()) for seed in range(200)]
    assert 0.3 - 1e-6 <= min(values) < 0.34
    assert 0.66 < max(values) <= 0.7 + 1e-6


def test_a_pair_is_left_as_it_is_where_nothing_is_asked_for():
    z, x, mask = torch.rand(1, 3, 12, 12), torch.rand(3, 24, 24), torch.ones(1, 3, 3, dtype=torch.bool)
    box, generator = np.array([2.0, 5, 8, 9]), torch.Generator().manual_seed(0)
    left = augment_pair(z, x, mask, box, generator, Augmentation(0, 0, 0))
    for found, given in zip(left, (z, x, mask, box), strict=True):
        assert np.array_equal(found, given)


def test_filters_are_drawn_as_often_as_asked():
    z, mask, box = torch.rand(1, 3, 12, 12), torch.ones(1, 3, 3, dtype=torch.bool), np.zeros(4)
    counts = {}
    for share in (0.3, 1.0):
        changed = 0
        for seed in range(300):
            generator = torch.Generator().manual_seed(seed)
            found, *_ = augment_pair(z, z[0], mask, box, generator, Augmentation(0, 0, share))
            changed += not torch.equal(found, z)
        counts[share] = changed
    assert counts[1.0] > 295  # a blur of the least radius changes nothing
    assert 65 <= counts[0.3] <= 115
