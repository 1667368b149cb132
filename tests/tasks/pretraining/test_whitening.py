"""Patches that start whitened: variances against their formula."""

import pytest
import torch
from torch import nn

from vision_lowrank.tasks.pretraining.whitening import whiten_patches


@pytest.mark.parametrize("width", [12, 100])
def test_tokens_have_variance_one_and_the_variances_asked_for(width):
    torch.manual_seed(0)
    mixing = torch.randn(48, 48)  # patches of 4 x 4 x 3 whose numbers go together
    patches = torch.randn(2000, 48) @ mixing.T + torch.randn(48)
    views = patches.reshape(2000, 3, 4, 4)
    embedding = nn.Conv2d(3, width, 4, stride=4)
    whiten_patches(embedding, views)
    tokens = embedding(views).flatten(1).double()
    assert tokens.std().item() == pytest.approx(1, rel=1e-2)
    torch.testing.assert_close(tokens.mean(dim=0), torch.zeros(width).double(), atol=1e-4, rtol=0)
    covariance = torch.linalg.eigvalsh((tokens - tokens.mean(dim=0)).T @ (tokens - tokens.mean(dim=0)) / 2000).flip(0)
    own = torch.linalg.eigvalsh(torch.cov(patches.double().T, correction=0)).flip(0)
    kept = min(width, 48)
    expected = (own / own[0])[:kept] ** (2 * 0.15)
    torch.testing.assert_close(covariance[:kept] / covariance[0], expected, rtol=2e-2, atol=1e-3)
    assert covariance[kept:].abs().sum() < 1e-6
