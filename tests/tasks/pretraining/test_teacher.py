"""A teacher's loss against its formula in float64, and what trains."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.data.transforms import Preprocess
from vision_lowrank.errors import UserError
from vision_lowrank.tasks.pretraining.teacher import Teacher

GIVEN = Preprocess(64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def network():
    return load_backbone("timm:test_efficientnet", "random")


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return Teacher(network(), (1, 2), 6, torch.randn(8, 3, 64, 64), GIVEN)


def test_the_loss_is_its_formula(teacher):
    torch.manual_seed(1)
    views, tokens = torch.randn(2, 3, 64, 64), torch.randn(2, 12, 6)
    own = teacher.backbone.preprocess
    columns = [torch.tensor(v).view(3, 1, 1) for v in (GIVEN.std, GIVEN.mean, own.mean, own.std)]
    pixels = (views * columns[0] + columns[1] - columns[2]) / columns[3]
    with torch.no_grad():
        maps = teacher.backbone.model.forward_intermediates(pixels, indices=[1, 2], intermediates_only=True)
    stacked = torch.cat([F.interpolate(each.double(), (3, 4), mode="bilinear") for each in maps], dim=1)
    true = (stacked.flatten(2).transpose(1, 2) - teacher.mean.double()) / teacher.deviation.double()
    true, told = true.numpy(), (tokens.double() @ teacher.regressor.weight.double().T + teacher.regressor.bias.double())
    told = told.detach().numpy()
    gap = np.abs(told - true)
    smooth = np.where(gap < 1, gap**2 / 2, gap - 0.5).mean()
    cosine = (told * true).sum(-1) / np.linalg.norm(told, axis=-1) / np.linalg.norm(true, axis=-1)
    expected = smooth + (1 - cosine).mean()
    assert teacher.loss(tokens, views, (3, 4)).item() == pytest.approx(expected, rel=1e-4)


def test_channels_are_standardised_over_the_views_seen():
    torch.manual_seed(0)
    views = torch.randn(8, 3, 64, 64)
    teacher = Teacher(network(), (2,), 6, views, GIVEN)
    seen = ((teacher._channels(views, (8, 8)) - teacher.mean) / teacher.deviation).flatten(0, 1)
    moving = seen.std(dim=0) > 0.5  # dead channels stay zero
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(seen.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(dim=0)[moving], torch.ones(int(moving.sum())), atol=1e-3, rtol=0)


def test_the_regressor_alone_trains(teacher):
    assert {name for name, p in teacher.named_parameters() if p.requires_grad} == {"regressor.weight", "regressor.bias"}
    tokens = torch.randn(2, 12, 6, requires_grad=True)
    teacher.loss(tokens, torch.randn(2, 3, 64, 64), (3, 4)).backward()
    assert tokens.grad.abs().sum() > 0


def test_maps_that_are_not_there_are_said():
    with pytest.raises(UserError, match=r"gives no maps \[9\]"):
        Teacher(network(), (9,), 6, torch.randn(2, 3, 64, 64), GIVEN)
