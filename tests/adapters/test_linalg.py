"""Ranks from the spectra of weights."""

import pytest
import torch

from vision_lowrank.adapters.linalg import allocate_ranks, energies


def spectrum(decay, seed):
    generator = torch.Generator().manual_seed(seed)
    U, _ = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=torch.float64))
    return U * decay ** torch.arange(32, dtype=torch.float64)


def test_allocation_gives_low_ranks_to_fast_spectra():
    decays = (0.3, 0.6, 0.8, 0.9, 0.97, 0.99)
    weights = {str(each): spectrum(decay, each) for each, decay in enumerate(decays)}
    ranks = list(allocate_ranks(weights, 8, [4, 8, 16]).values())
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]
    assert sum(ranks) == 6 * 8


def test_equal_spectra_get_equal_ranks():
    weights = {str(each): spectrum(0.9, each) for each in range(5)}
    assert set(allocate_ranks(weights, 8, [4, 8, 16]).values()) == {8}


def test_energies_end_at_one():
    weight = spectrum(0.9, 0)
    values = torch.linalg.svdvals(weight).square()
    torch.testing.assert_close(energies(weight)[3], values[:3].sum() / values.sum())
    assert float(energies(weight)[-1]) == pytest.approx(1)
    assert energies(torch.zeros(3, 3)).tolist() == [1, 1, 1, 1]
