"""LoRA-XS: what its paper says, layer by layer."""

import pytest
import torch
from fixtures.small_layers import R, layer_of, model, train, trained_parameters, update_of

from vision_lowrank.adapters.lora_xs import LoraXsConfig
from vision_lowrank.errors import UserError


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


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match="unknown factors 'svds'"):
        LoraXsConfig(factors="svds")
