# ruff: noqa: NPY002 - NumPy's global generator is what timm draws from
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from vision_lowrank.data import augmentation
from vision_lowrank.data.augmentation import FromTorch, training_transform
from vision_lowrank.data.base import ImageSet
from vision_lowrank.data.loading import TransformedImages
from vision_lowrank.data.transforms import Preprocess

PLAIN = Preprocess(24, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CLIP = Preprocess(24, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
ARMS = ["basic", "randaugment", "randaugment_heavy", "augmix", "trivial_augment", "color_jitter"]
STRONG = ARMS[1:]


def image_set(count=3):
    rng = np.random.default_rng(0)
    pictures = {
        f"p{i}": Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((40, 48)) for i in range(count)
    }
    return ImageSet("noise", ("a",), (0,) * count, tuple(pictures), pictures.__getitem__)


def data_of(arm, preprocess=PLAIN, seed=3, **options):
    return TransformedImages(image_set(), training_transform(preprocess, arm, **options), seed)


def draws():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def stir(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def images(data, count):
    return torch.stack([data[position, position % 3]["image"] for position in range(count)])


def test_basic_is_bit_for_bit_what_it_was_when_there_was_nothing_else():
    data = data_of("basic", CLIP, crop=(0.3, 1.0), flip=0.5)
    crop = v2.RandomResizedCrop(24, scale=(0.3, 1.0), interpolation=InterpolationMode.BICUBIC)
    scaled = v2.ToDtype(torch.float32, scale=True)
    steps = [crop, v2.RandomHorizontalFlip(0.5), v2.ToImage(), scaled, v2.Normalize(CLIP.mean, CLIP.std)]
    before = v2.Compose([*steps, v2.ToPureTensor()])
    for position in range(8):
        torch.manual_seed(3 * 1_000_003 + position)
        assert torch.equal(data[position, position % 3]["image"], before(data.images.image(position % 3)))


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_without_augmentation_it_is_the_evaluation_which_draws_nothing(resize):
    preprocess = Preprocess(24, CLIP.mean, CLIP.std, crop_pct=0.9, resize=resize)
    picture, before = image_set().image(0), draws()
    expected = preprocess.evaluation()(picture)
    assert draws() == before
    stir(9)
    assert torch.equal(preprocess.evaluation()(picture), expected)
    assert torch.equal(training_transform(preprocess, "none", flip=1.0)(picture), expected)


@pytest.mark.parametrize("arm", ARMS)
def test_a_picture_is_a_function_of_seed_and_position(arm):
    stir(1)
    first = images(data_of(arm), 6)
    stir(2)
    assert torch.equal(images(data_of(arm), 6), first)
    assert not torch.equal(images(data_of(arm, seed=4), 6), first)
    assert not torch.equal(data_of(arm)[6, 0]["image"], first[0])
    assert (first.shape, first.dtype) == ((6, 3, 24, 24), torch.float32)


@pytest.mark.parametrize("arm", ARMS)
def test_the_global_generators_stay_where_they_were(arm):
    data = data_of(arm)
    stir(5)
    before = draws()
    images(data, 4)
    assert draws() == before


def test_generators_come_back_after_an_error_too():
    stir(5)
    before = draws()[:2]
    with pytest.raises(ZeroDivisionError):
        FromTorch(lambda number: 1 / number)(0)
    assert draws()[:2] == before


def test_python_and_numpy_draw_numbers_of_their_own_at_every_seed_of_torch():
    step = FromTorch(lambda _: {random.random(), float(np.random.random())})
    numbers = set()
    for seed in (7, 8, 7 + 2**31, 7 + 2**28):
        torch.manual_seed(seed)
        numbers |= step(None)
    torch.manual_seed(7)
    assert len(numbers) == 8
    assert step(None) < numbers


@pytest.mark.parametrize("arm", STRONG)
def test_every_arm_comes_on_top_of_the_same_crop_and_flip(arm):
    basic, strong = (images(data_of(each, crop=(0.5, 1.0), flip=0.5), 30) for each in ("basic", arm))
    same = (basic == strong).flatten(1).all(dim=1).sum()
    assert same < 30
    # RandAugment leaves a half of the pictures alone with one operation, a quarter with two; AugMix hardly any.
    assert (same > 0) == (arm != "augmix") or arm == "trivial_augment"


def test_heavy_is_heavier_than_light():
    basic, light, heavy = (images(data_of(arm), 40) for arm in ("basic", "randaugment", "randaugment_heavy"))
    assert (heavy - basic).abs().mean() > 1.3 * (light - basic).abs().mean() > 0


def test_only_heavy_erases_about_a_quarter_and_after_the_normalisation():
    outside = {
        arm: int(((p < 0) | (p > 1)).flatten(1).any(dim=1).sum()) for arm in ARMS for p in [images(data_of(arm), 100)]
    }
    assert 12 <= outside.pop("randaugment_heavy") <= 40  # 25 ± 3.5 standard deviations
    assert not any(outside.values())


def test_every_operation_works_with_the_strongest_noise_of_its_magnitude():
    picture = image_set().image(0)
    for operation in training_transform(PLAIN, "randaugment_heavy").transforms[2].step.ops:
        operation.prob, operation.magnitude = 1.0, 99
        assert operation(picture).size == picture.size, operation.name


@pytest.mark.parametrize("arm", ["randaugment", "trivial_augment"])
def test_what_moves_away_leaves_the_mean_colour(arm):
    grey = ImageSet("grey", ("a",), (0,), ("g",), lambda _: Image.new("RGB", (48, 48), (51, 102, 153)))
    preprocess = Preprocess(24, (0.2, 0.4, 0.6), (1.0, 1.0, 1.0))
    transform = training_transform(preprocess, arm)
    # One operation on a picture of the mean colour: either it moves, and what is uncovered is the same, or all changes.
    outs = [TransformedImages(grey, transform)[i, 0]["image"] for i in range(40)]
    assert all(out.flatten(1).std(dim=1).max() < 1e-6 for out in outs)


@pytest.mark.parametrize(
    ("jittered", "grey", "step"),
    [(1.0, 0.0, v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)), (0.0, 1.0, v2.Grayscale(3))],
)
def test_each_step_of_color_jitter_is_torchvisions_before_the_normalisation(jittered, grey, step, monkeypatch):
    monkeypatch.setattr(augmentation, "JITTERED", jittered)
    monkeypatch.setattr(augmentation, "GREY", grey)
    transform = training_transform(CLIP, "color_jitter", crop=(0.3, 1.0))
    crop, flip, _, *normalise = transform.transforms
    for seed in range(8):
        torch.manual_seed(seed)
        expected = flip(crop(image_set().image(0)))
        torch.rand(1)  # decides whether the colours change
        expected = v2.Compose([step, *normalise])(expected)
        torch.manual_seed(seed)
        assert torch.equal(transform(image_set().image(0)), expected)


def test_color_jitter_makes_a_fifth_grey_and_leaves_a_sixth_alone():
    basic, jittered = (images(data_of(arm), 200) for arm in ("basic", "color_jitter"))
    assert (basic[:, :1] != basic).flatten(1).any(dim=1).all()
    grey = (jittered[:, :1] == jittered).flatten(1).all(dim=1)
    assert 20 <= grey.sum() <= 60  # 40 ± 3.5 standard deviations
    same = (basic == jittered).flatten(1).all(dim=1)
    assert 15 <= same.sum() <= 50  # 32 = 0.2 · 0.8 · 200, likewise


def test_color_jitter_keeps_shapes():
    half = Image.new("RGB", (48, 48), (200, 60, 60))
    half.paste((60, 60, 200), (0, 0, 24, 48))
    transform = training_transform(PLAIN, "color_jitter", crop=(1.0, 1.0), flip=0.0)
    for _ in range(10):
        out = transform(half)
        assert (out.std(dim=1) < 1e-6).all()  # every column is of one colour
