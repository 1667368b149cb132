"""GLAD with a gradient nearby that serves several steps."""

import pytest
import torch
from fixtures.adapted_task import Adapted, rule_of
from fixtures.glad_points import (
    START,
    Point,
    assert_same,
    glad,
    gradient,
    nearby,
    quadratic,
    state,
    steered,
    two_gradients,
)
from fixtures.tiny_tasks import settings

from vision_lowrank.config.schema import EngineConfig
from vision_lowrank.engine import Engine, Hook
from vision_lowrank.optim.base import StepContext
from vision_lowrank.optim.glad import Glad


class Passes(Hook):
    """How many passes each step took; dies after step `at`."""

    def __init__(self, task, at=None):
        self.calls, self.counts, self.at = 0, [], at
        task.register_forward_hook(self.called)

    def called(self, *_):
        self.calls += 1

    def after_step(self, engine):
        self.counts.append(self.calls - sum(self.counts))
        if engine.step == self.at:
            raise ZeroDivisionError


def counted(folder, options, at=None, task=None, **engine):
    """The task after training, and the passes of each step."""
    task = task or Adapted()
    passes = Passes(task, at)
    engine = Engine(settings(steps=8, **engine), task, folder, seed=4, rule=rule_of(options), hooks=[passes])
    if at is None:
        engine.fit()
    else:
        with pytest.raises(ZeroDivisionError):
            engine.fit()
    return task, passes.counts


def test_the_gradient_nearby_is_computed_at_every_nth_step(tmp_path):
    assert counted(tmp_path / "3", glad(refresh_every=3))[1] == [2, 1, 1, 2, 1, 1, 2, 1]
    assert counted(tmp_path / "1", glad(refresh_every=1))[1] == [2] * 8


@pytest.mark.parametrize("combine", ["steer", "project", "align"])
def test_between_refreshes_the_kept_gradient_steers(combine):
    """On a quadratic, by hand: the point moves, the gradient nearby stays that of the first step."""
    point = Point(quadratic)
    options = {"combine": combine, "strength": 0.6, "rho": 0.2}
    steps = Glad(perturb_head=True, refresh_every=2, **options).start(StepContext(point, EngineConfig(), 0, 0))
    kept = nearby(quadratic, 0.2)
    for _ in range(2):
        x = point.x().detach().clone()
        steps.gradients(point)
        expected, _ = steered(two_gradients(gradient(quadratic, x), kept), **options)
        torch.testing.assert_close(point.grad(), expected, rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            point.head.sub_(0.1)
            point.rest.add_(0.2)
    assert point.calls == 3


@pytest.mark.parametrize("at", [4, 5])
def test_resumed_run_with_a_kept_gradient_equals_the_whole(at, tmp_path):
    options = glad(refresh_every=3, rho=0.3, strength=0.7)
    whole, _ = counted(tmp_path / "whole", options)
    counted(tmp_path / "cut", options, at=at, checkpoint_every=1)
    resumed, passes = counted(tmp_path / "cut", options, checkpoint_every=1)
    assert passes == [2, 1, 1, 2, 1, 1, 2, 1][at - 1 :]  # the step that died is done again
    assert_same(state(whole), state(resumed))


def test_gradient_nearby_that_is_not_finite_is_not_kept():
    def loss(x):
        return quadratic(x) * (1.0 if torch.equal(x.detach(), START) else float("inf"))

    point = Point(loss)
    steps = Glad(perturb_head=True, refresh_every=5).start(StepContext(point, EngineConfig(), 0, 0))
    for calls in (2, 4):
        steps.gradients(point)
        assert not point.grad().isfinite().all()  # the engine leaves this step out
        assert point.calls == calls
