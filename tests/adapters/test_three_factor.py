"""LoRA-XS, SLoRA with NLoRA and IntTune, and LaMDA: what their papers say, layer by layer."""

import math

import peft
import pytest
import torch
from torch import nn

from vision_lowrank.adapters.lamda import LamdaConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.lora_xs import LoraXsConfig
from vision_lowrank.adapters.slora import SloraConfig
from vision_lowrank.errors import UserError
from vision_lowrank.initializers.initialize import initialize
from vision_lowrank.initializers.nystrom import Nystrom
from vision_lowrank.selection.spectrum import allocate_ranks, energies

IN, OUT, R = 20, 12, 4


def model(config, dtype=torch.float64, layers=1):
    torch.manual_seed(0)
    base = nn.Sequential(*[nn.Linear(IN, OUT) if each % 2 == 0 else nn.Linear(OUT, IN) for each in range(layers)])
    config.target_modules = {str(each) for each in range(layers)}
    torch.manual_seed(1)
    return peft.get_peft_model(base.to(dtype), config)


def layer_of(attached, name="0"):
    return attached.base_model.model.get_submodule(name)


def update_of(attached, name="0"):
    return layer_of(attached, name).weight_update["default"]


def inputs():
    return torch.randn(7, IN, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def train(attached, steps, optimizer, after=lambda step: None):
    target = torch.randn(7, OUT, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for step in range(steps):
        optimizer.zero_grad()
        (attached(inputs()) - target).square().mean().backward()
        optimizer.step()
        after(step + 1)


def trained_parameters(attached):
    return [p for p in attached.parameters() if p.requires_grad]


def test_lora_xs_starts_from_the_svd_and_almost_at_the_base():
    update = update_of(model(LoraXsConfig(r=R)))
    weight = layer_of(model(LoraXsConfig(r=R))).base_layer.weight
    sigma = torch.linalg.svdvals(weight)[:R]
    torch.testing.assert_close(update.B.T @ update.B, torch.eye(R, dtype=torch.float64))
    torch.testing.assert_close(update.A @ update.A.T, torch.diag(sigma**2))
    assert 0 < update.delta().norm() < 1e-3 * weight.norm()
    assert update.core.std() < 1e-4


def test_lora_xs_with_a_scaled_identity_is_the_leading_part_of_the_weight():
    attached = model(LoraXsConfig(r=R, alpha=8))
    update, weight = update_of(attached), layer_of(attached).base_layer.weight
    with torch.no_grad():
        update.core.copy_(torch.eye(R) * R / 8)
    U, sigma, Vt = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(update.delta(), U[:, :R] * sigma[:R] @ Vt[:R])


def test_lora_xs_stays_in_the_spans_of_its_frozen_factors():
    attached = model(LoraXsConfig(r=R))
    update = update_of(attached)
    A, B = update.A.clone(), update.B.clone()
    train(attached, 5, torch.optim.AdamW(trained_parameters(attached), lr=0.1))
    assert torch.equal(update.A, A)
    assert torch.equal(update.B, B)
    delta = update.delta().detach()
    assert delta.norm() > 0.1
    torch.testing.assert_close(B @ torch.linalg.pinv(B) @ delta @ torch.linalg.pinv(A) @ A, delta)


def test_lora_xs_random_factors():
    update = update_of(model(LoraXsConfig(r=R, factors="random")))
    assert (update.A @ update.A.T - torch.diag((update.A @ update.A.T).diagonal())).abs().max() > 1e-3


def test_slora_starts_at_the_base_and_only_b_learns_first():
    attached = model(SloraConfig(r=R))
    attached(inputs()).square().sum().backward()
    update = update_of(attached)
    assert not update.delta().any()
    assert update.B.grad.any()
    assert not update.A.grad.any()
    assert not update.core.grad.any()


def test_slora_with_a_core_of_ones_is_lora_step_for_step():
    attached, lora = model(SloraConfig(r=R, alpha=3, scaling="rslora")), model(LoraConfig(r=R, alpha=3).with_offset())
    update, other = update_of(attached), update_of(lora)
    with torch.no_grad():
        update.core.copy_(torch.eye(R))
        other.A.copy_(update.A)
    update.core.requires_grad_(False)
    for each in (attached, lora):
        train(each, 5, torch.optim.SGD(trained_parameters(each), lr=0.5))
    torch.testing.assert_close(update.delta(), other.delta())
    assert update.delta().any()


def test_nlora_starts_at_the_weight_plus_the_product_of_its_blocks():
    attached = model(SloraConfig(r=R, alpha=2))
    initialize(attached, Nystrom())
    W = layer_of(attached).base_layer.weight.detach()
    torch.testing.assert_close(update_of(attached).delta(), 2 / R * W[:, :R] @ W[:R, :R] @ W[:R])


def test_inttune_trains_the_core_alone_and_starts_where_nlora_does():
    attached = model(SloraConfig(r=R, alpha=2, train="middle"))
    update, W = update_of(attached), layer_of(attached).base_layer.weight.detach()
    A, B = update.A.clone(), update.B.clone()
    torch.testing.assert_close(update.delta(), 2 / R * W[:, :R] @ W[:R, :R] @ W[:R])
    train(attached, 3, torch.optim.AdamW(trained_parameters(attached), lr=0.1))
    assert torch.equal(update.A, A)
    assert torch.equal(update.B, B)
    assert sum(p.numel() for p in trained_parameters(attached)) == R * R


@pytest.mark.parametrize("start", ["spectral", "identity"])
def test_lamda_spectral_start_is_the_leading_part_of_the_weight(start):
    attached = model(LamdaConfig(r=R, alpha=6, start=start))
    update, W = update_of(attached), layer_of(attached).base_layer.weight.detach()
    U, sigma, Vt = torch.linalg.svd(W, full_matrices=False)
    own = update.own_factors()
    torch.testing.assert_close(own.scale * own.B @ own.A, U[:, :R] * sigma[:R] @ Vt[:R])
    assert not update.delta().any()
    assert torch.linalg.matrix_rank(W - own.scale * own.B @ own.A) == min(W.shape) - R
    assert update.factors().A.shape[0] == R  # the offset shares A
    if start == "spectral":
        torch.testing.assert_close(update.A @ update.A.T, torch.eye(R, dtype=torch.float64))
        torch.testing.assert_close(update.B.T @ update.B, torch.eye(R, dtype=torch.float64))
        torch.testing.assert_close(update.core, torch.diag(sigma[:R] * R / 6))
    else:
        torch.testing.assert_close(update.core, torch.eye(R, dtype=torch.float64))


def test_lamda_lora_start_adds_nothing_and_lets_b_learn():
    attached = model(LamdaConfig(r=R, start="lora"))
    update = update_of(attached)
    attached(inputs()).square().sum().backward()
    assert not update.delta().any()
    assert update.B.grad.any()


@pytest.mark.parametrize("eta", [0.3, 0.5, 1.0])
def test_lamda_freezes_the_leading_columns_on_time_whatever_adamw_does(eta):
    attached, steps = model(LamdaConfig(r=R, eta=eta)), 20
    update = update_of(attached)
    groups = [{"params": [update.B]}, {"params": [update.core], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.05, weight_decay=0.3)
    update.set_progress(optimizer, 0, steps)
    frozen_at: dict[int, torch.Tensor] = {}

    def after(step):
        core = update.core.clone()
        update.set_progress(optimizer, step, steps)
        due = min(R, math.floor(R * step / (eta * steps)))
        for column in range(due):
            frozen_at.setdefault(column, update.B[:, column].clone())
            assert torch.equal(update.B[:, column], frozen_at[column])
        assert torch.equal(update.core, core)
        seen.append(update.B.detach().clone())
        assert (update.B in optimizer.state) == (due < R)
        assert sum(p.numel() for p in trained_parameters(attached)) == (R * R if due == R else R * R + R * OUT)

    seen: list[torch.Tensor] = []
    A = update.A.clone()
    train(attached, steps, optimizer, after)
    assert torch.equal(update.A, A)
    assert not torch.equal(seen[0], seen[1])
    assert all(not torch.equal(seen[step][:, -1], seen[step - 1][:, -1]) for step in range(1, int(eta * steps) - 1))
    delta = update.delta().detach()
    torch.testing.assert_close(delta @ torch.linalg.pinv(A) @ A, delta)


def test_lamda_without_time_for_b_trains_the_core_alone():
    attached = model(LamdaConfig(r=R, eta=0.0))
    optimizer = torch.optim.AdamW(trained_parameters(attached))
    update_of(attached).set_progress(optimizer, 0, 10)
    assert sum(p.numel() for p in trained_parameters(attached)) == R * R


def test_lamda_with_endless_time_and_a_core_of_ones_is_lora_with_a_frozen_a():
    attached, lora = (
        model(LamdaConfig(r=R, alpha=3, start="lora", eta=math.inf, scaling="rslora")),
        model(LoraConfig(r=R, alpha=3).with_offset()),
    )
    update, other = update_of(attached), update_of(lora)
    with torch.no_grad():
        update.core.copy_(torch.eye(R))
        other.A.copy_(update.A)
    update.core.requires_grad_(False)
    other.A.requires_grad_(False)
    optimizer = torch.optim.AdamW(trained_parameters(attached), lr=0.1)
    train(attached, 5, optimizer, lambda step: update.set_progress(optimizer, step, 5))
    train(lora, 5, torch.optim.AdamW(trained_parameters(lora), lr=0.1))
    torch.testing.assert_close(update.delta(), other.delta())


def test_lamda_keeps_no_input_sized_tensor_for_its_branch():
    attached = model(LamdaConfig(r=R))
    update, saved = update_of(attached), []
    x = inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        update(x).sum().backward()
    assert (len(x), R) in saved
    assert (len(x), IN) not in saved


def test_lamda_plus_plus_ranks_follow_the_spectra_within_the_budget():
    attached = model(LamdaConfig(r=R, ranks="spectrum"), layers=3)
    weights = {name: layer_of(attached, name).base_layer.weight for name in ("0", "1", "2")}
    ranks = {name: update_of(attached, name).A.shape[0] for name in weights}
    assert ranks == allocate_ranks(weights, R, [2, 4, 8])
    assert sum(ranks.values()) == 3 * R
    assert update_of(attached).facts()["rank"] == ranks["0"]


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


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match=r"unknown start 'spectrl'. Did you mean 'spectral'"):
        LamdaConfig(start="spectrl")
    with pytest.raises(UserError, match="eta = -1"):
        LamdaConfig(eta=-1)
    with pytest.raises(UserError, match="smallest must be from 1 to the average rank r = 4"):
        model(LamdaConfig(r=R, ranks="spectrum", candidates=[8, 16]))
    with pytest.raises(UserError, match="unknown train 'midle'"):
        SloraConfig(train="midle")
    with pytest.raises(UserError, match="unknown factors 'svds'"):
        LoraXsConfig(factors="svds")
    with pytest.raises(UserError, match="r = 13 is too large for '0'"):
        model(SloraConfig(r=13))
