"""What adapters ask of the engine: proximal steps, progress, exemptions from decay and clipping, whole checkpoints."""

import pytest
import torch
from fixtures.tiny_tasks import Regression, settings
from torch import nn

from vision_lowrank.engine import Engine
from vision_lowrank.engine.hooks import Hook
from vision_lowrank.engine.signals import Interrupted
from vision_lowrank.trained import TrainedPart


class Gate(TrainedPart):
    """A gate that shrinks after each step, a frozen tensor, and a parameter that leaves the optimiser half-way."""

    no_decay = ("gate",)
    no_clip = ("gate",)
    checkpoint_whole = True

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.ones(8))
        self.bias = nn.Parameter(torch.zeros(8))
        self.register_buffer("frozen", torch.full((8,), 0.5))
        self.rates, self.progress = [], []

    def forward(self, x):
        return x * self.gate * self.frozen + self.bias

    @torch.no_grad()
    def proximal_step(self, lr):
        self.rates.append(lr)
        self.gate.sub_(0.1 * lr)

    def set_progress(self, optimizer, step, steps):
        self.progress.append((step, steps))
        if step >= steps // 2 and self.bias.requires_grad:
            self.bias.requires_grad_(False).grad = None
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if p is not self.bias]
            optimizer.state.pop(self.bias, None)


class Gated(Regression):
    def __init__(self, **options):
        super().__init__(**options)
        self.gate = Gate()

    def predict(self, x):
        return self.last(self.gate(torch.tanh(self.first(x)))).squeeze(-1)


class StopAt(Hook):
    def __init__(self, step):
        self.step = step

    def after_step(self, engine):
        if engine.step == self.step:
            engine._signals.pending = True


def run(folder, task, **options):
    engine = Engine(settings(**options), task, folder, seed=1)
    engine.fit()
    return engine


def test_progress_is_told_at_the_start_and_after_every_step(tmp_path):
    task = Gated()
    run(tmp_path, task)
    assert task.gate.progress == [(step, 6) for step in range(7)]


def test_the_proximal_step_follows_every_optimiser_step_with_its_rate(tmp_path):
    task = Gated()
    run(tmp_path, task, schedule="constant")
    assert task.gate.rates == [0.05] * 6


class Infinite(Hook):
    def after_backward(self, engine):
        if engine.step == 2:
            engine.task.gate.gate.grad.fill_(float("inf"))


def test_a_skipped_step_has_no_proximal_step_even_if_only_an_unclipped_gradient_is_infinite(tmp_path):
    task = Gated()
    Engine(settings(clip_norm=1.0), task, tmp_path, seed=1, hooks=[Infinite()]).fit()
    assert len(task.gate.rates) == 5
    assert all(p.isfinite().all() for p in task.parameters())


def test_named_parameters_form_groups_without_decay_and_clipping():
    task = Gated()
    plain, exempt = sorted(task.parameter_groups(), key=lambda group: "weight_decay" in group)
    assert [p is task.gate.gate for p in exempt["params"]] == [True]
    assert exempt["weight_decay"] == 0.0
    assert (plain["clip"], exempt["clip"]) == (True, False)
    assert {id(p) for p in plain["params"]} == {id(p) for p in task.parameters()} - {id(task.gate.gate)}


def test_clipping_leaves_exempt_gradients_alone(tmp_path):
    class Watch(Hook):
        def after_backward(self, engine):
            self.gate, self.last = engine.task.gate.gate.grad.clone(), engine.task.last.weight.grad.clone()

        def after_step(self, engine):
            assert torch.equal(engine.task.gate.gate.grad, self.gate)
            assert engine.task.last.weight.grad.norm() < self.last.norm()

    Engine(settings(clip_norm=1e-3), Gated(), tmp_path, seed=1, hooks=[Watch()]).fit()


def test_frozen_tensors_are_in_the_checkpoint_and_a_run_resumes_past_the_change(tmp_path):
    whole = run(tmp_path / "whole", Gated(dropout=0.5)).task
    for stop in (2, 4):  # before and after the parameter has left the optimiser
        folder = tmp_path / f"parts{stop}"
        with pytest.raises(Interrupted):
            Engine(settings(), Gated(dropout=0.5), folder, seed=1, hooks=[StopAt(stop)]).fit()
        task = Gated(dropout=0.5)
        task.gate.frozen.zero_()  # as another machine might have computed it
        engine = Engine(settings(), task, folder, seed=1, hooks=[StopAt(99)])
        engine.fit()
        pairs = zip(task.state_dict().values(), whole.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
