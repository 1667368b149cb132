"""Each initialiser's formula, in float64, on random weights and gradients."""

import math

import pytest
import torch

from vision_lowrank.config.schema import EngineConfig
from vision_lowrank.engine.schedule import set_learning_rate
from vision_lowrank.errors import UserError
from vision_lowrank.initializers.base import Site
from vision_lowrank.initializers.lora_ga import LoraGa
from vision_lowrank.initializers.lora_sb import LoraSb
from vision_lowrank.initializers.nystrom import Nystrom
from vision_lowrank.initializers.pissa import Pissa

R, ALPHA = 3, 2.0
ETA = ALPHA / math.sqrt(R)
shapes = pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])


def site(shape, r=R, scale=ETA, loss_scale=1.0):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradient = loss_scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    return Site("layer", weight, gradient, r, scale)


def best(matrix, r):
    """Best rank-r approximation."""
    U, sigma, Vt = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :r] * sigma[:r] @ Vt[:r]


def product(start):
    return start.B @ start.core @ start.A


@shapes
def test_pissa_is_the_best_low_rank_form_of_the_weight(shape):
    place = site(shape)
    torch.testing.assert_close(ETA * product(Pissa().start(place)), best(place.weight, R))


@shapes
@pytest.mark.parametrize("gamma", [16.0, 64.0])
def test_lora_ga_has_orthogonal_factors_of_the_papers_size(shape, gamma):
    place = site(shape)
    A, core, B = LoraGa(gamma=gamma).start(place)
    size = torch.eye(R, dtype=torch.float64) * shape[0] ** 0.5 / gamma
    torch.testing.assert_close(A @ A.T, size)
    torch.testing.assert_close(B.T @ B, size)
    assert torch.equal(core, torch.eye(R, dtype=torch.float64))
    assert float((ETA * B @ A).norm()) == pytest.approx(ALPHA * shape[0] ** 0.5 / gamma)


@shapes
@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr", "random"])
def test_lora_ga_first_step_is_a_multiple_of_the_best_rank_2r_gradient(shape, direction):
    place = site(shape)
    A, _, B = LoraGa(gamma=16, direction=direction).start(place)
    G = place.gradient
    step = ETA**2 * (G @ A.T @ A + B @ B.T @ G)
    torch.testing.assert_close(step, ETA**2 * shape[0] ** 0.5 / 16 * best(G, 2 * R))


def test_lora_ga_takes_the_first_triplets_for_a_and_the_next_for_b():
    place = site((12, 20))
    A, _, B = LoraGa().start(place)
    U, _, Vt = torch.linalg.svd(place.gradient, full_matrices=False)
    assert (A @ Vt[R : 2 * R].T).abs().max() < 1e-12
    assert (B.T @ U[:, :R]).abs().max() < 1e-12


@shapes
def test_lora_ga_does_not_depend_on_the_size_of_the_loss_and_pefts_variant_does(shape):
    for variant, same in (("paper", True), ("peft", False)):
        one, other = (LoraGa(variant=variant).start(site(shape, loss_scale=scale)) for scale in (1.0, 100.0))
        assert torch.allclose(product(one), product(other)) == same


def test_lora_ga_loss_falls_by_the_predicted_amount_in_one_small_step():
    place, lr = site((12, 20)), 1e-7
    start = LoraGa(gamma=16).start(place)
    A, B = start.A.clone().requires_grad_(), start.B.clone().requires_grad_()
    loss = (place.gradient * (place.weight + ETA * (B @ A))).sum()  # its gradient in W is G everywhere
    loss.backward()
    with torch.no_grad():
        after = (place.gradient * (place.weight + ETA * ((B - lr * B.grad) @ (A - lr * A.grad)))).sum()
        fall = lr * ETA**2 * ((place.gradient @ A.T).norm() ** 2 + (B.T @ place.gradient).norm() ** 2)
    assert float(loss.detach() - after) == pytest.approx(float(fall), rel=1e-4)


@pytest.mark.parametrize(("size", "factor"), [("unit", 1.0), ("gd", 1 / ETA)])
def test_lora_ga_other_sizes(size, factor):
    A, _, _ = LoraGa(size=size).start(site((12, 20)))
    torch.testing.assert_close(A @ A.T, torch.eye(R, dtype=torch.float64) * factor**2)


def test_lora_ga_size_by_weight():
    place = site((12, 20))
    A, _, _ = LoraGa(size="weight").start(place)
    factor = (torch.linalg.svdvals(place.weight)[:R] / ETA).sqrt().mean()
    torch.testing.assert_close(A @ A.T, torch.eye(R, dtype=torch.float64) * factor**2)


def test_lora_ga_norm_clip_bounds_the_start_by_the_weights_largest_entry():
    place = site((12, 20))
    free, clipped = (ETA * product(LoraGa(gamma=0.01, norm_clip=clip).start(place)) for clip in (False, True))
    assert free.abs().max() > place.weight.abs().max()
    assert float(clipped.abs().max()) == pytest.approx(float(place.weight.abs().max()))
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm())


def test_lora_ga_needs_twice_the_rank():
    with pytest.raises(UserError, match=r"r = 7 is too large for 'layer', where LoRA-GA needs 2r of 12 .* is 6"):
        LoraGa().start(site((12, 20), r=7))


@shapes
def test_lora_sb_is_the_best_low_rank_form_of_adams_first_step(shape):
    place, lr = site(shape), 3e-3
    A, core, B = LoraSb(lr=lr).start(place)
    eye = torch.eye(R, dtype=torch.float64)
    torch.testing.assert_close(A @ A.T, eye)
    torch.testing.assert_close(B.T @ B, eye)
    values = core.diagonal()
    torch.testing.assert_close(core, torch.diag(values))
    assert (values >= 0).all()
    assert (values.diff() <= 0).all()
    D = -lr * place.gradient.sign()
    torch.testing.assert_close(ETA * product((LoraSb(lr=lr)).start(place)), best(D, R))
    tail = torch.linalg.svdvals(D)[R:].square().sum()
    assert float((D - ETA * B @ core @ A).norm() ** 2) == pytest.approx(float(tail))


def test_lora_sb_takes_adamws_very_first_step():
    place = site((12, 20))
    weight = torch.nn.Parameter(place.weight.clone())
    weight.grad = place.gradient.clone()
    torch.optim.AdamW([weight], lr=3e-3, weight_decay=0.0, eps=0.0).step()
    full = site((12, 20), r=12)
    torch.testing.assert_close(weight - place.weight, ETA * product(LoraSb(lr=3e-3).start(full)))


def test_lora_sb_depends_on_signs_only():
    one, other = (LoraSb(lr=1e-3).start(site((12, 20), loss_scale=scale)) for scale in (1.0, 10.0))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_lora_sb_gradient_in_the_core_is_full_fine_tunings_projected():
    place = site((12, 20), scale=1.0)
    A, core, B = LoraSb(lr=1e-3).start(place)
    core = core.clone().requires_grad_()
    (place.gradient * (B @ core @ A)).sum().backward()
    moved = B @ core.grad @ A
    torch.testing.assert_close(moved, B @ B.T @ place.gradient @ A.T @ A)
    torch.testing.assert_close(B @ B.T @ moved @ A.T @ A, moved)


def test_lora_sb_at_full_rank_one_step_on_the_core_is_one_step_of_full_fine_tuning():
    place = site((16, 16), r=16, scale=1.0)
    A, core, B = LoraSb(lr=1e-3).start(place)
    core = core.clone().requires_grad_()
    (place.gradient * (B @ core @ A)).sum().backward()
    with torch.no_grad():
        change = B @ (core - 0.1 * core.grad) @ A - B @ core @ A
    torch.testing.assert_close(change, -0.1 * place.gradient)


def test_lora_sb_learns_its_rate_from_the_run():
    config = EngineConfig(lr=1e-3, warmup_steps=20)
    weight = torch.nn.Parameter(torch.zeros(1))
    first = set_learning_rate(torch.optim.SGD([weight], lr=config.lr), 0, config)
    assert LoraSb().for_training(config.lr, config.warmup_steps).lr == pytest.approx(first)
    assert LoraSb().for_training(lr=1e-3, warmup_steps=0).lr == pytest.approx(1e-5)
    assert LoraSb(lr=0.5).for_training(lr=1e-3, warmup_steps=20).lr == 0.5
    with pytest.raises(UserError, match="give lr"):
        LoraSb().start(site((12, 20)))


@shapes
def test_nystrom_takes_exact_blocks_of_the_weight_as_copies(shape):
    place = site(shape)
    A, core, B = Nystrom().start(place)
    assert torch.equal(A, place.weight[:R])
    assert torch.equal(B, place.weight[:, :R])
    assert torch.equal(core, A[:, :R])
    assert torch.equal(core, B[:R])
    before = place.weight.clone()
    for tensor in (A, core, B):
        tensor.zero_()
    assert torch.equal(place.weight, before)


@shapes
def test_nystrom_pinv_is_exact_on_the_first_rows_and_columns(shape):
    place = site(shape)
    approximation = product(Nystrom(core="pinv", residual=True).start(place))
    torch.testing.assert_close(approximation[:R], place.weight[:R])
    torch.testing.assert_close(approximation[:, :R], place.weight[:, :R])


def test_nystrom_pinv_reproduces_a_weight_of_low_rank():
    weight = best(site((12, 20)).weight, R)
    start = Nystrom(core="pinv", residual=True).start(Site("layer", weight, None, R, ETA))
    torch.testing.assert_close(product(start), weight)


def test_nystrom_refuses_what_could_not_learn():
    weight = site((12, 20)).weight
    weight[:R] = 0
    with pytest.raises(UserError, match="rows and columns of 'layer' are zero"):
        Nystrom().start(Site("layer", weight, None, R, ETA))
    with pytest.raises(UserError, match="set residual=true"):
        Nystrom(core="pinv")
    with pytest.raises(UserError, match="r = 13 is too large for 'layer'"):
        Nystrom().start(site((12, 20), r=13))


def test_lora_ga_interleaved_triplets_give_a_the_odd_and_b_the_even_positions_from_zero():
    place = site((12, 20))
    A, _, B = LoraGa(direction="ArBr").start(place)
    U, _, Vt = torch.linalg.svd(place.gradient, full_matrices=False)
    assert (A @ Vt[0 : 2 * R : 2].T).abs().max() < 1e-12
    assert (B.T @ U[:, 1 : 2 * R : 2]).abs().max() < 1e-12


def test_nlora_warns_where_its_start_is_far_from_the_base(caplog):
    with caplog.at_level("WARNING"):
        Nystrom().start(site((12, 20)))
        assert "layer starts" in caplog.text
        caplog.clear()
        Nystrom(residual=True).start(site((12, 20)))
        assert not caplog.text
