import json

import numpy as np
import pytest
import torch
from fixtures.slender import slender, watch_resizing
from PIL import Image
from torchvision.transforms import v2

from vision_lowrank.data.base import ImageSet
from vision_lowrank.data.loading import TransformedImages
from vision_lowrank.data.transforms import Preprocess
from vision_lowrank.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def normalised(picture):
    values = np.asarray(picture, dtype=np.float64) / 255
    return torch.from_numpy(((values - MEAN) / STD).transpose(2, 0, 1))


def test_evaluation_is_short_side_resize_centre_crop_and_normalisation():
    picture = noise(90, 60)
    got = Preprocess(32, MEAN, STD, crop_pct=0.8).evaluation()(picture)
    # short side round(32 / 0.8) = 40, long side 60; the middle 32 x 32 begins at (14, 4)
    want = normalised(picture.resize((60, 40), Image.Resampling.BICUBIC).crop((14, 4, 46, 36)))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)


def test_squash_scales_both_sides():
    picture = noise(90, 60)
    got = Preprocess(32, MEAN, STD, interpolation="bilinear", resize="squash").evaluation()(picture)
    torch.testing.assert_close(
        got.double(), normalised(picture.resize((32, 32), Image.Resampling.BILINEAR)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("upright", [True, False])
def test_slender_pictures_need_bounded_memory_and_show_what_they_did(monkeypatch, upright):
    watch_resizing(monkeypatch)
    plain = {"size": 32, "mean": (0, 0, 0), "std": (1, 1, 1)}
    picture = slender(upright)
    assert torch.equal(Preprocess(**plain).evaluation()(picture), torch.ones(3, 32, 32))  # the middle
    Preprocess(**plain).training()(picture)
    squashed = Preprocess(**plain, resize="squash").evaluation()(picture)
    line = squashed[0, :, 3] if upright else squashed[0, 3]
    assert torch.equal((line > 0.5).int(), torch.tensor([0] * 8 + [1] * 16 + [0] * 8, dtype=torch.int32))


def test_pictures_of_ordinary_shape_are_resized_whole():
    for size in ((1000, 40), (40, 1000)):
        picture, plain = noise(*size), Preprocess(32, (0, 0, 0), (1, 1, 1))
        scaled = v2.CenterCrop(32)(v2.Resize(32, v2.InterpolationMode.BICUBIC)(picture))
        assert torch.equal(
            plain.evaluation()(picture), v2.functional.to_dtype(v2.functional.to_image(scaled), scale=True)
        )


def test_training_with_full_scale_and_sure_flip_is_the_mirrored_resize():
    picture = noise(48, 48)
    got = Preprocess(24, MEAN, STD).training(scale=(1.0, 1.0), flip=1.0)
    want = normalised(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((24, 24), Image.Resampling.BICUBIC))
    square = [got(picture) for _ in range(30)]
    # scale 1 leaves a square crop of the whole picture whenever its ratio fits; others fall back to the centre
    assert min(float((one.double() - want).abs().max()) for one in square) < 0.1


def test_training_without_flip_never_mirrors():
    halves = Image.new("RGB", (40, 40), "black")
    halves.paste("white", (20, 0, 40, 40))
    transform = Preprocess(16, (0, 0, 0), (1, 1, 1)).training(scale=(0.9, 1.0), flip=0.0)
    assert all(out[:, :, -1].mean() > out[:, :, 0].mean() for out in (transform(halves) for _ in range(20)))


@pytest.mark.parametrize("kind", ["evaluation", "training", "pretraining"])
@pytest.mark.parametrize("size", [(64, 64), (31, 77), (1, 1)])
def test_every_pipeline_gives_float_pixels_of_the_model_size(kind, size):
    out = getattr(Preprocess(48, MEAN, STD), kind)()(noise(*size))
    assert type(out) is torch.Tensor
    assert (out.shape, out.dtype) == ((3, 48, 48), torch.float32)


def test_pretraining_varies_colour_and_shape_but_keeps_the_value_range():
    transform = Preprocess(48, (0, 0, 0), (1, 1, 1)).pretraining()
    torch.manual_seed(0)
    outs = torch.stack([transform(noise(64, 64)) for _ in range(60)])
    assert outs.min() >= 0
    assert outs.max() <= 1
    assert len({float(out.sum()) for out in outs}) == 60
    grey = [bool(torch.allclose(out[0], out[1], atol=1e-3)) for out in outs]
    assert 1 <= sum(grey) <= 25


def test_dictionary_round_trip_survives_json():
    preprocess = Preprocess(48, MEAN, STD, interpolation="bilinear", crop_pct=0.9, resize="squash")
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": 8, "mean": MEAN, "std": STD, "crop_pc": 1}, "Did you mean 'crop_pct'"),
        ({"size": 8, "mean": MEAN}, "lacks 'std'"),
        ({"size": 8, "mean": MEAN, "std": STD, "interpolation": "bicubik"}, "Did you mean 'bicubic'"),
        ({"size": 8, "mean": MEAN, "std": STD, "resize": "longest"}, "unknown resize 'longest'"),
    ],
)
def test_wrong_settings_are_named(values, said):
    with pytest.raises(UserError, match=said):
        Preprocess.from_dict(values)


def image_set(count=3):
    pictures = {f"p{i}": noise(40, 40, i) for i in range(count)}
    return ImageSet("noise", ("a",), (0,) * count, tuple(pictures), pictures.__getitem__)


def test_augmentation_depends_on_seed_and_position_only():
    transform = Preprocess(24, MEAN, STD).pretraining()
    data, other_seed = TransformedImages(image_set(), transform, seed=3), TransformedImages(image_set(), transform, 4)
    first = data[17, 1]["image"]
    torch.manual_seed(99)
    assert torch.equal(data[17, 1]["image"], first)
    assert not torch.equal(data[18, 1]["image"], first)
    assert not torch.equal(other_seed[17, 1]["image"], first)
    assert data[17, 1]["index"] == 1


def test_augmentation_leaves_the_global_random_state_alone():
    data = TransformedImages(image_set(), Preprocess(24, MEAN, STD).pretraining())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    data[0, 0]
    assert torch.equal(torch.get_rng_state(), before)
