import math

import pytest
import torch

from vision_lowrank.analysis.spectra import decompose, effective_rank, relative_norm


def diagonal(*values):
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def test_effective_rank_is_the_exponent_of_the_entropy():
    assert effective_rank(diagonal(3, 3, 3, 0)) == pytest.approx(3)
    assert effective_rank(diagonal(5, 0, 0, 0)) == pytest.approx(1)
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    assert effective_rank(diagonal(5, -3, 2)) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p.tolist())))
    assert effective_rank(torch.zeros(4, 3)) == 0
    assert effective_rank(diagonal(3, 3).bfloat16()) == pytest.approx(2, rel=1e-5)


def test_relative_norm():
    assert relative_norm(diagonal(3, 4), diagonal(0, 1)) == pytest.approx(0.2)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_both_svds_give_their_matrices_back(shape):
    generator = torch.Generator().manual_seed(0)
    weight, delta = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    spectra = decompose(weight, delta)
    assert torch.allclose(spectra.base_left * spectra.base_values @ spectra.base_right.T, weight)
    assert torch.allclose(spectra.left * spectra.values @ spectra.right.T, weight + delta)
    assert (spectra.values.diff() <= 0).all()
    assert spectra.left.shape == (shape[0], 5)
    assert spectra.right.shape == (shape[1], 5)


def test_half_precision_is_widened_before_the_sum():
    """In bfloat16 the sum would round the change away."""
    weight, delta = diagonal(256, 256).bfloat16(), diagonal(0.25, 0.25).bfloat16()
    spectra = decompose(weight, delta)
    assert spectra.values.dtype == torch.float32
    assert spectra.values.tolist() == [256.25, 256.25]
