import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader

from vision_lowrank.data.base import ImageSet
from vision_lowrank.data.loading import TransformedImages
from vision_lowrank.data.mixing import MixedImages, cutmix, mixup, random_box

H, W, CLASSES = 9, 7, 6


def flat(key):
    return Image.new("RGB", (W, H), (10 * int(key),) * 3)


def to_pixels(picture):
    """Picture `i` becomes (3, H, W) of the value i."""
    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy()).float() / 10


def noise(picture):
    return torch.rand(3, 4, 4, dtype=torch.float64)


def data_of(transform=to_pixels, labels=range(CLASSES), seed=3, **alphas):
    """Six mixed pictures, picture i of class i unless `labels` say otherwise."""
    images = ImageSet("flat", tuple("abcdef"), tuple(labels), tuple("012345"), flat)
    return MixedImages(TransformedImages(images, transform, seed), **alphas)


def samples(data, count):
    return [data[position, position % len(data)] for position in range(count)]


def test_mixup_of_share_1_and_an_empty_box_change_nothing():
    one, other = torch.rand(3, H, W), torch.rand(3, H, W)
    assert torch.equal(mixup(one, other, 1.0), one)
    assert torch.equal(mixup(one, other, 0.0), other)
    for box in ((4, 4, 0, 7), (0, 9, 3, 3)):
        mixed, share = cutmix(one, other, box)
        assert torch.equal(mixed, one)
        assert share == 1
    mixed, share = cutmix(one, other, (0, H, 0, W))
    assert torch.equal(mixed, other)
    assert share == 0


def test_cutmix_pastes_the_box_and_leaves_its_arguments_alone():
    one, other = torch.zeros(3, H, W), torch.ones(3, H, W)
    mixed, share = cutmix(one, other, (1, 3, 2, 7))
    assert mixed[:, 1:3, 2:7].eq(1).all()
    assert mixed.sum() == 3 * 10
    assert share == pytest.approx(1 - 10 / 63, abs=1e-12)
    assert not one.any()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_boxes_stay_inside_and_have_the_share_s_size_unless_they_are_clipped(share):
    rng, whole = np.random.default_rng(0), (round((1 - share) ** 0.5 * H), round((1 - share) ** 0.5 * W))
    sizes = []
    for _ in range(300):
        top, bottom, left, right = random_box(H, W, share, rng)
        assert 0 <= top <= bottom <= H
        assert 0 <= left <= right <= W
        sizes.append((bottom - top, right - left))
    assert set(sizes) <= {(h, w) for h in range(whole[0] + 1) for w in range(whole[1] + 1)}
    assert whole in sizes
    assert any(size != whole for size in sizes) == (share < 1)


@pytest.mark.parametrize("alphas", [{"mixup": 0.2}, {"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_labels_sum_to_one_to_the_last_bit(alphas):
    labels = torch.stack([sample["label"] for sample in samples(data_of(**alphas), 150)])
    assert (labels.shape, labels.dtype) == ((150, CLASSES), torch.float32)
    assert labels.min() >= 0
    assert labels.sum(dim=1).eq(1).all()
    assert labels.max(dim=1).values.lt(1).sum() > 50
    one_class = torch.stack([sample["label"] for sample in samples(data_of(labels=[2] * 6, **alphas), 150)])
    assert torch.equal(one_class, F.one_hot(torch.tensor(2), CLASSES).float().expand(150, CLASSES))


def test_a_label_s_weight_is_the_share_of_its_class_s_pixels():
    for sample in samples(data_of(cutmix=1.0), 200):
        pixels = torch.stack([(sample["image"][0] == label).float().mean() for label in range(CLASSES)])
        torch.testing.assert_close(sample["label"], pixels, rtol=0, atol=1e-6)


def test_a_mixed_picture_has_the_shares_of_its_label():
    for sample in samples(data_of(mixup=0.8), 100):
        expected = (sample["label"] * torch.arange(CLASSES)).sum()
        torch.testing.assert_close(sample["image"], expected.expand(3, H, W), rtol=0, atol=1e-5)


def test_without_alphas_pictures_stay_and_labels_are_one_hot():
    data = data_of()
    for sample in samples(data, 6):
        index = sample["index"]
        assert torch.equal(sample["image"], data.data[index]["image"])
        assert torch.equal(sample["label"], F.one_hot(torch.tensor(index), CLASSES).float())


def test_with_both_each_gets_about_half():
    flat_ones = [sample["image"].unique().numel() == 1 for sample in samples(data_of(mixup=5.0, cutmix=5.0), 300)]
    # A sixth are mixed with themselves and flat in either case: 1/6 + 5/6 · 1/2 = 175 of 300, ± 4 standard deviations.
    assert 141 <= sum(flat_ones) <= 209


def test_partners_are_drawn_uniformly_from_all_pictures():
    data = data_of(mixup=1.0)
    counts = torch.zeros(CLASSES)
    for position in range(600):
        label = data[position, 0]["label"].clone()
        label[0] = 0
        counts[int(label.argmax()) if label.any() else 0] += 1
    assert counts.min() > 60
    assert counts.max() < 140


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_are_those_of_a_beta_distribution(alpha):
    labels = [data_of(mixup=alpha)[position, 0]["label"] for position in range(900)]
    shares = torch.stack([label[0] for label in labels if (label > 0).sum() != 1 or label[0] == 0])
    assert abs(shares.mean() - 0.5) < 0.06
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.2)


def test_the_picture_is_that_of_no_mixing_and_the_partner_is_augmented_by_itself():
    data = data_of(noise, mixup=1.0)
    for position in range(20):
        sample, plain = data[position, 2], data.data[position, 2]["image"]
        share = sample["label"][2].double()
        if share < 0.9:
            partner = (sample["image"] - share * plain) / (1 - share)
            assert partner.min() > -1e-5
            assert partner.max() < 1 + 1e-5
            assert (partner - plain).abs().max() > 0.1


def test_a_sample_depends_on_seed_position_and_index_alone():
    first, again, other = (data_of(noise, seed=seed, mixup=0.8, cutmix=1.0) for seed in (3, 3, 4))
    sample = first[17, 1]
    random.seed(99)
    torch.manual_seed(99)
    repeated = again[17, 1]
    assert torch.equal(repeated["image"], sample["image"])
    assert torch.equal(repeated["label"], sample["label"])
    assert not torch.equal(other[17, 1]["image"], sample["image"])
    assert not torch.equal(first[18, 1]["image"], sample["image"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 5])
def test_batches_of_any_size_and_workers_hold_the_same_samples(size, workers):
    data = data_of(noise, mixup=0.8, cutmix=1.0)
    items = [(20 + i, i % CLASSES) for i in range(7)]
    batches = list(DataLoader(data, batch_size=size, sampler=items, num_workers=workers))
    for name in ("image", "label"):
        expected = torch.stack([data[item][name] for item in items])
        assert torch.equal(torch.cat([batch[name] for batch in batches]), expected)


def test_cross_entropy_of_one_hot_and_of_mixed_targets():
    logits, i, j = (
        torch.randn(5, CLASSES, dtype=torch.float64),
        torch.tensor([0, 1, 2, 3, 4]),
        torch.tensor([5, 4, 2, 1, 0]),
    )
    one, other = (F.one_hot(each, CLASSES).double() for each in (i, j))
    torch.testing.assert_close(F.cross_entropy(logits, one), F.cross_entropy(logits, i), rtol=1e-12, atol=0)
    expected = 0.3 * F.cross_entropy(logits, i) + 0.7 * F.cross_entropy(logits, j)
    torch.testing.assert_close(F.cross_entropy(logits, mixup(one, other, 0.3)), expected, rtol=1e-12, atol=0)
