"""SLoRA, NLoRA and IntTune: what their paper says, layer by layer."""

import pytest
import torch
from fixtures.small_layers import R, inputs, layer_of, model, train, trained_parameters, update_of

from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.slora import SloraConfig
from vision_lowrank.errors import UserError
from vision_lowrank.initializers.initialize import initialize
from vision_lowrank.initializers.nystrom import Nystrom


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


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match="unknown train 'midle'"):
        SloraConfig(train="midle")
    with pytest.raises(UserError, match="r = 13 is too large for '0'"):
        model(SloraConfig(r=13))
