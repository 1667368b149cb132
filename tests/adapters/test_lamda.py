"""LaMDA and LaMDA++: what their paper says, layer by layer."""

import math

import peft
import pytest
import torch
from fixtures.small_layers import IN, OUT, R, inputs, layer_of, model, train, trained_parameters, update_of
from fixtures.tiny_tasks import Regression, settings
from torch import nn

from vision_lowrank.adapters.lamda import LamdaConfig
from vision_lowrank.adapters.linalg import allocate_ranks
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.attachment.phases import begin_phase
from vision_lowrank.engine import Engine
from vision_lowrank.engine.hooks import Hook
from vision_lowrank.engine.keep import Best
from vision_lowrank.errors import UserError


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
    assert {update_of(attached, name).scale for name in weights} == {16 / R}  # by the average rank


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match=r"unknown start 'spectrl'. Did you mean 'spectral'"):
        LamdaConfig(start="spectrl")
    with pytest.raises(UserError, match="eta = -1"):
        LamdaConfig(eta=-1)
    with pytest.raises(UserError, match="smallest must be from 1 to the average rank r = 4"):
        model(LamdaConfig(r=R, ranks="spectrum", candidates=[8, 16]))
    with pytest.raises(UserError, match="ranks = spectrum gives every layer its rank: leave rank_pattern out"):
        LamdaConfig(ranks="spectrum", rank_pattern={"0": 2})


class Halves(Regression):
    """Two stages on a LaMDA layer, announced to the adapter as the tasks do."""

    def __init__(self):
        super().__init__(stages=2, keep=Best("val/score"))
        torch.manual_seed(1)
        host = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.adapted = peft.get_peft_model(host, LamdaConfig(r=3, alpha=3, eta=0.5, target_modules=["0"]))

    def begin_stage(self, stage):
        begin_phase(self.adapted, stage.name)

    def predict(self, x):
        return self.adapted(x).squeeze(-1)


class Interrupt(Hook):
    def __init__(self, step):
        self.step = step

    def after_step(self, engine):
        if engine.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [2, 5, 6, 8, 11])
def test_lamda_resumes_in_mid_schedule_and_between_stages_bit_for_bit(stop, tmp_path):
    options = settings(checkpoint_every=1, eval_every=2)
    whole = Halves()
    Engine(options, whole, tmp_path / "whole", seed=1, hooks=[Interrupt(99)]).fit()
    with pytest.raises(KeyboardInterrupt):
        Engine(options, Halves(), tmp_path / "parts", seed=1, hooks=[Interrupt(stop)]).fit()
    resumed = Halves()
    Engine(options, resumed, tmp_path / "parts", seed=1, hooks=[Interrupt(99)]).fit()
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_lamda_that_is_not_active_is_left_alone():
    attached = model(LamdaConfig(r=R, eta=0.5))
    attached.add_adapter("second", LamdaConfig(r=R, eta=0.5, target_modules=["0"]))
    attached.set_adapter("second")
    optimizer = torch.optim.AdamW(trained_parameters(attached))
    for update in layer_of(attached).weight_update.values():
        update.set_progress(optimizer, 10, 10)
    attached.set_adapter("default")
    assert sum(p.numel() for p in trained_parameters(attached)) == R * R + R * OUT
