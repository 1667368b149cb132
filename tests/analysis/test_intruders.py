"""Planted pairs (W0, ΔW) in float64 with known singular vectors."""

import math

import pytest
import torch

from vision_lowrank.adapters.base import Factors
from vision_lowrank.analysis.intruders import (
    count_grid,
    find_intruders,
    intruder_factors,
    intruders,
    random_similarity,
    scale_intruders,
    scale_random,
    shrink,
    similarities,
    similarity_matrix,
)
from vision_lowrank.analysis.spectra import decompose
from vision_lowrank.errors import UserError

OUT, IN = 48, 40


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows, columns, seed):
    return torch.linalg.qr(draw(rows, columns, seed=seed))[0]


def base(out=OUT, inside=IN):
    """W0 with known U0, s0, V0: singular values from 8 down to 1."""
    n = min(out, inside)
    U, V = orthonormal(out, n, 1), orthonormal(inside, n, 2)
    s = torch.linspace(8, 1, n, dtype=torch.float64)
    return U * s @ V.T, U, s, V


def mix(U, columns=range(24, 32)):
    """A normalised equal mix of columns beyond the top 2k."""
    return U[:, list(columns)].sum(dim=1) / math.sqrt(len(columns))


def lora(seed=5, r=3, size=1.0):
    A, B = draw(r, IN, seed=seed), draw(OUT, r, seed=seed + 1)
    return Factors(A * size, B, 0.5)


def delta_of(factors):
    return factors.scale * factors.B @ factors.A


def test_no_change_gives_similarity_one_and_no_intruder():
    weight, *_ = base()
    spectra = decompose(weight, torch.zeros_like(weight))
    assert torch.allclose(similarities(spectra), torch.ones(IN, dtype=torch.float64))
    assert intruders(weight, torch.zeros_like(weight), k=IN, epsilon=1 - 1e-5).count == 0
    assert torch.allclose(similarity_matrix(spectra, IN), torch.eye(IN, dtype=torch.float64), atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_change_counts_nothing_in_any_type(dtype):
    weight = base()[0].to(dtype)
    assert intruders(weight, torch.zeros_like(weight), k=IN, epsilon=1 - 1e-5).count == 0


def test_changed_singular_values_alone_are_no_intruders():
    weight, U, s, V = base()
    order = torch.randperm(IN, generator=torch.Generator().manual_seed(0))
    changed = U * (s[order] * 3) @ V.T
    assert intruders(weight, changed - weight, k=IN, epsilon=0.9, side="both").count == 0
    assert not torch.equal(changed, weight)


def test_a_planted_intruder_is_the_first_vector_and_the_only_one():
    weight, U, s, V = base()
    u, v = mix(U), mix(V)
    found = intruders(weight, 100 * s[0] * torch.outer(u, v))
    assert found.indices.tolist() == [0]
    assert float(found.similarities[0]) == pytest.approx(1 / math.sqrt(8), abs=1e-3)
    assert float((found.left[:, 0] @ u).abs()) == pytest.approx(1, abs=1e-4)
    energy = found.values.square()
    assert found.energy_share == pytest.approx(float(energy[0] / energy.sum()))


@pytest.mark.parametrize("column", [0, 20, 35])
def test_a_pretrained_direction_grown_large_is_no_intruder(column):
    """Column 20 and 35 lie beyond the top k: comparing only the leading frozen vectors would count them."""
    weight, U, s, V = base()
    assert intruders(weight, 100 * s[0] * torch.outer(U[:, column], V[:, column])).count == 0


def test_a_direction_outside_the_span_has_no_similarity():
    """out > in: U0 spans 40 of 48 directions."""
    weight, U, s, V = base()
    outside = draw(OUT, seed=8)
    outside -= U @ (U.T @ outside)
    found = intruders(weight, 1e4 * s[0] * torch.outer(outside / outside.norm(), V[:, 3]))
    assert found.indices.tolist() == [0]
    assert float(found.similarities[0]) < 1e-3


def test_sides():
    """New on the left, old on the right: an intruder on the left only."""
    weight, U, s, V = base()
    delta = 1e4 * s[0] * torch.outer(mix(U), V[:, 24])
    assert intruders(weight, delta, side="left").count == 1
    assert intruders(weight, delta, side="right").count == 0
    assert intruders(weight, delta, side="both").count == 0
    spectra = decompose(weight, delta)
    both = torch.maximum(similarities(spectra, "left"), similarities(spectra, "right"))
    assert torch.equal(similarities(spectra, "both"), both)
    with pytest.raises(UserError, match="Did you mean 'left'"):
        intruders(weight, delta, side="leftt")


def test_counts_grow_with_epsilon_and_k_and_equal_single_counts():
    weight, *_ = base()
    delta = delta_of(lora(size=4.0)) + delta_of(lora(seed=11))
    spectra = decompose(weight, delta)
    ks, epsilons = [1, 2, 5, 10, 40, 99], [0.05, 0.2, 0.3, 0.5, 0.8, 1.0]
    grid = count_grid(similarities(spectra), ks, epsilons)
    assert grid.shape == (6, 6)
    assert (grid.diff(dim=0) >= 0).all()
    assert (grid.diff(dim=1) >= 0).all()
    assert (grid <= torch.tensor(ks)[:, None]).all()
    assert int(grid[3, 3]) > 0
    single = [[find_intruders(spectra, k, epsilon).count for epsilon in epsilons] for k in ks]
    assert grid.tolist() == single


def test_scale_signs_and_rotation_from_the_left_change_nothing():
    weight, *_ = base()
    delta = delta_of(lora(size=4.0))
    expected = similarities(decompose(weight, delta))[:10]
    Q = orthonormal(OUT, OUT, 3)
    signs_out, signs_in = draw(OUT, seed=4).sign(), draw(IN, seed=4).sign()
    for W0, dW in (
        (7 * weight, 7 * delta),
        (Q @ weight, Q @ delta),
        (-weight, -delta),
        (signs_out[:, None] * weight * signs_in, signs_out[:, None] * delta * signs_in),
    ):
        assert torch.allclose(similarities(decompose(W0, dW))[:10], expected, atol=1e-9)


def test_scaling_to_one_is_the_change_itself_and_to_zero_removes_the_components():
    weight, *_ = base()
    delta = delta_of(lora(size=4.0))
    found = intruders(weight, delta)
    assert found.count > 1
    assert torch.equal(scale_intruders(delta, found, 1.0), delta)
    W = weight + scale_intruders(delta, found, 0.0)
    for j in found.indices:
        assert abs(float(found.left[:, j] @ W @ found.right[:, j])) < 1e-10
    others = [j for j in range(10) if j not in found.indices.tolist()]
    for j in others:
        assert float(found.left[:, j] @ W @ found.right[:, j]) == pytest.approx(float(found.values[j]))


@pytest.mark.parametrize("keep", [0.0, 0.25, 0.9, 1.5])
def test_the_distance_moved_is_the_closed_form(keep):
    weight, *_ = base()
    factors = lora(size=4.0)
    delta = delta_of(factors)
    found = intruders(weight, delta)
    moved = scale_intruders(delta, found, keep) - delta
    expected = (1 - keep) ** 2 * float(found.values[found.indices].square().sum())
    assert float(moved.square().sum()) == pytest.approx(expected)
    exact = intruder_factors(factors, found, keep)
    assert exact.A.shape == (3 + found.count, IN)
    assert exact.scale == 1
    assert torch.allclose(delta_of(exact), delta + moved, atol=1e-10)


def test_without_intruders_nothing_is_touched():
    weight, *_ = base()
    factors = lora(size=1e-3)
    delta = delta_of(factors)
    found = intruders(weight, delta)
    assert found.count == 0
    assert scale_intruders(delta, found, 0.0) is delta
    assert intruder_factors(factors, found, 0.0) is factors
    assert found.energy_share == 0


def test_the_controls_match_in_norm_and_in_number():
    weight, *_ = base()
    delta = delta_of(lora(size=4.0))
    found = intruders(weight, delta)
    small = shrink(delta, found, 0.3)
    assert float(small.norm()) == pytest.approx(float(scale_intruders(delta, found, 0.3).norm()))
    assert torch.allclose(small / small.norm(), delta / delta.norm())
    moved = scale_random(delta, found, 0.0, torch.Generator().manual_seed(1)) - delta
    amounts = torch.stack([found.left[:, j] @ moved @ found.right[:, j] for j in range(10)])
    drawn = amounts.abs() > 1e-9
    assert int(drawn.sum()) == found.count
    assert torch.allclose(-amounts[drawn], found.values[drawn])
    draws = [scale_random(delta, found, 0.0, torch.Generator().manual_seed(s)).norm() for s in range(6)]
    assert len({round(float(norm), 9) for norm in draws}) > 1


def test_the_energy_of_blocks_sees_through_rotations_inside_a_degenerate_block():
    """Four equal singular values: their vectors may turn freely, and then only the block is the same."""
    U, V = orthonormal(OUT, IN, 1), orthonormal(IN, IN, 2)
    s = torch.linspace(8, 1, IN, dtype=torch.float64)
    s[:4] = 9
    weight = U * s @ V.T
    u = U[:, :4].sum(dim=1) / 2
    v = V[:, :4].sum(dim=1) / 2
    spectra = decompose(weight, torch.outer(u, v))
    assert float(similarities(spectra, block=4)[0]) == pytest.approx(1, abs=1e-6)
    assert (similarities(spectra, block=2) >= similarities(spectra) - 1e-12).all()


@pytest.mark.parametrize("dimension", [2, 20, 192, 768])
def test_random_directions_score_what_samples_of_them_do(dimension):
    vectors = draw(4000, dimension, seed=6)
    scores = vectors.abs().amax(dim=1) / vectors.norm(dim=1)
    error = float(scores.std()) / math.sqrt(len(scores))
    assert random_similarity(dimension) == pytest.approx(float(scores.mean()), abs=4 * error)


def test_in_the_plane_the_random_score_is_known():
    """The mean of max(|cos|, |sin|) over all angles."""
    assert random_similarity(2) == pytest.approx(2 * math.sqrt(2) / math.pi, abs=1e-6)


def test_mistakes_are_explained():
    weight, *_ = base()
    with pytest.raises(UserError, match=r"\(48, 40\) and \(40, 48\)"):
        intruders(weight, weight.T)
    with pytest.raises(UserError, match="k = 0"):
        intruders(weight, weight, k=0)
    with pytest.raises(UserError, match="not finite"):
        intruders(weight, weight * torch.nan)
