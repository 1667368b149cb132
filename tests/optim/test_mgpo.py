"""MGPO against closed forms in float64."""

import math

import pytest
import torch
from fixtures.adapted_task import rule_of, train
from fixtures.small_layers import layer_of, model
from torch import nn

import vision_lowrank as vl
from vision_lowrank.config.adapter import AdapterSection
from vision_lowrank.config.schema import EngineConfig, RunConfig
from vision_lowrank.errors import UserError
from vision_lowrank.optim.base import StepContext

RHO, SCALE = 0.3, 0.5
MOMENTUM = {"optimizer": "sgd", "momentum": 0.8, "weight_decay": 0.0}


class Quadratic:
    """L = k ½ (θ - 1)ᵀ H (θ - 1) over the adapter tensors of one linear, with what each call saw of them."""

    def __init__(self, options, k=1.0, **settings):
        self.attached, self.k = model(vl.LoraConfig(r=4, alpha=1.0)), k
        layer = layer_of(self.attached)
        self.A, self.B, self.W = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight
        nn.init.normal_(self.B)
        size = self.A.numel() + self.B.numel()
        root = torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.H = root @ root.T / size
        self.seen, self.weights = [], []
        self.head = nn.Linear(2, 2).double()
        task = nn.ModuleList([self.attached, self.head])
        config = EngineConfig(**{"lr": 0.05} | settings)
        self.steps = rule_of({"type": "mgpo", "rho": RHO} | options).start(StepContext(task, config, 0, 0))
        self.steps.prepare()
        self.tensors = [self.A, self.B]
        self.optimizer = self.steps.optimizer([{"params": [*self.tensors, self.head.weight]}])

    @property
    def theta(self):
        return torch.cat([tensor.detach().flatten() for tensor in self.tensors])

    @property
    def gradient(self):
        return torch.cat([tensor.grad.flatten() for tensor in self.tensors])

    def moment(self, key="exp_avg"):
        return torch.cat([self.optimizer.state[tensor][key].flatten() for tensor in self.tensors])

    def closure(self):
        self.optimizer.zero_grad()
        self.seen.append(self.theta)
        self.weights.append(self.W.clone())
        away = torch.cat([tensor.flatten() for tensor in self.tensors]) - 1
        ((self.k * away @ self.H @ away) / 2 + 100 * self.head.weight.sum()).backward()
        return {"loss": 0.0}

    def step(self):
        numbers = self.steps.gradients(self.closure)
        self.optimizer.step()
        return numbers


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("settings", [{}, MOMENTUM])
def test_rho_zero_is_plain_training_bit_for_bit(variant, settings, tmp_path):
    plain = train(tmp_path / "plain", None, **settings).task.state_dict()
    rule = {"type": "mgpo", "rho": 0.0, "variant": variant}
    for name, tensor in train(tmp_path / "rule", rule, **settings).task.state_dict().items():
        assert torch.equal(tensor, plain[name]), name


@pytest.mark.parametrize(("settings", "key"), [({}, "exp_avg"), (MOMENTUM, "momentum_buffer")])
def test_perturbation_follows_the_moment(settings, key):
    task = Quadratic({}, **settings)
    numbers = task.step()
    assert numbers["mgpo_eps"] == 0
    gbar = task.gradient.norm()
    for _ in range(4):
        before, moment = task.theta, task.moment(key).clone()
        numbers = task.step()
        eps = task.seen[-1] - before
        close(eps.norm(), RHO / gbar)
        close(torch.dot(eps, moment) / (eps.norm() * moment.norm()), torch.tensor(1.0).double())
        close(torch.tensor(numbers["mgpo_eps"], dtype=torch.float64), eps.norm())
        close(task.gradient, task.H @ (before + eps - 1))  # the gradient used is the one there
        gbar = 0.9 * gbar + 0.1 * task.gradient.norm()
        close(task.steps.gbar, gbar)
    assert len(task.seen) == 5  # one pass per step


def test_first_step_is_unperturbed_and_weights_are_put_back():
    task = Quadratic({})
    start = task.theta
    task.steps.gradients(task.closure)
    assert torch.equal(task.seen[0], start)
    task.optimizer.step()
    here = task.theta
    task.steps.gradients(task.closure)
    assert torch.equal(task.theta, here)
    assert not torch.equal(task.seen[1], here)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_weights_are_put_back_after_a_failure(variant):
    task = Quadratic({"variant": variant})
    task.step()
    before = (task.theta, task.W.clone(), task.head.weight.clone())

    def failing():
        moved = torch.equal(task.theta, before[0]), torch.equal(task.W, before[1])
        assert moved == ((False, True) if variant == "paper" else (True, False))
        assert torch.equal(task.head.weight, before[2])  # no adapter
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        task.steps.gradients(failing)
    assert torch.equal(task.theta, before[0])
    assert torch.equal(task.W, before[1])


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_loss_times_k_keeps_the_direction_and_divides_the_size_by_k(variant):
    moves = []
    for k in (1.0, 4.0):
        task = Quadratic({"variant": variant, "max_scale": 1e6}, k, **MOMENTUM)
        task.optimizer.param_groups[0]["lr"] = 0.0
        task.step()
        before = torch.cat([task.theta, task.W.flatten()])
        task.step()
        moves.append(torch.cat([task.seen[-1], task.weights[-1].flatten()]) - before)
    assert moves[0].norm() > 1e-3
    torch.testing.assert_close(moves[1], moves[0] / 4, rtol=1e-8, atol=1e-10)


def test_largest_scale_bounds_the_perturbation():
    task = Quadratic({"max_scale": 2.0}, k=1e-6)
    task.step()
    before = task.theta
    task.step()
    close((task.seen[-1] - before).norm(), torch.tensor(2.0 * RHO, dtype=torch.float64))


def test_gradients_that_are_not_finite_leave_the_mean():
    task = Quadratic({})
    task.k = math.inf
    task.steps.gradients(task.closure)  # skipped by the engine
    assert task.steps.gbar is None
    task.k = 1.0
    task.step()
    gbar = task.steps.gbar
    task.k, here = math.nan, task.theta
    task.steps.gradients(task.closure)
    assert task.steps.gbar is gbar
    assert torch.equal(task.theta, here)


def test_code_variant_in_closed_form():
    task = Quadratic({"variant": "code"})
    start = task.W.clone()
    task.step()
    assert torch.equal(task.weights[0], start)
    for _ in range(3):
        A, B, mA, mB = (
            t.detach().clone() for t in (task.A, task.B, *(task.optimizer.state[p]["exp_avg"] for p in task.tensors))
        )
        D = SCALE * (mB @ A + B @ mA)
        gbar = task.steps.gbar.clone()
        task.step()
        close(task.weights[-1] - start, -RHO * D / D.norm() * min(10, 1 / float(gbar)))
        assert torch.equal(task.seen[-1], torch.cat([A.flatten(), B.flatten()]))
        assert torch.equal(task.W, start)
        G = SCALE * (task.B.grad @ A + B @ task.A.grad)
        close(task.steps.gbar, 0.9 * gbar + 0.1 * G.norm())


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_mean_survives_a_checkpoint(variant):
    task = Quadratic({"variant": variant})
    task.step()
    state = task.steps.state_dict()
    task.step()
    again = Quadratic({"variant": variant})
    assert again.steps.state_dict() == {"gbar": None}
    again.steps.load_state_dict(state)
    assert torch.equal(again.steps.gbar, state["gbar"])


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_mean_does_not_depend_on_accumulation(variant, tmp_path):
    rule = {"type": "mgpo", "rho": RHO, "variant": variant}
    whole = train(tmp_path / "whole", rule, batch_size=6)
    halves = train(tmp_path / "halves", rule, batch_size=6, accumulate=2)
    torch.testing.assert_close(whole.steps.gbar, halves.steps.gbar, rtol=1e-9, atol=1e-9)
    for one, other in zip(whole.task.parameters(), halves.task.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_what_does_not_fit_is_refused():
    def start(task, **options):
        rule_of({"type": "mgpo", **options}).start(StepContext(task, EngineConfig(), 0, 0)).prepare()

    with pytest.raises(UserError, match="no adapter"):
        start(nn.Linear(2, 2))
    start(model(vl.BlockLoraConfig(r=4, blocks=2)))
    with pytest.raises(UserError, match="one pair"):
        start(model(vl.BlockLoraConfig(r=4, blocks=2)), variant="code")


@pytest.mark.parametrize(
    ("adapter", "settings", "words"),
    [(None, {}, "no adapter trains"), (AdapterSection(type="lora"), {"optimizer": "sgd"}, r"set engine\.momentum")],
)
def test_refused_before_anything_is_loaded(adapter, settings, words):
    with pytest.raises(UserError, match=words):
        RunConfig(
            backbone={"name": "tiny-clip"},
            task={},
            data={},
            adapter=adapter,
            rule=rule_of({"type": "mgpo"}),
            engine=EngineConfig(**settings),
        )
