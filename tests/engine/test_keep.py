"""Which state a stage ends with."""

import math

import pytest
import torch
from fixtures.tiny_tasks import Regression, settings

from vision_lowrank.engine import Engine, Hook
from vision_lowrank.engine.keep import Best, Last, LastWithin
from vision_lowrank.errors import UserError


def told(rule, name, values):
    """The steps whose states a rule takes when it hears of `values`, one after another, from step 0 on."""
    taken = []
    for step, value in enumerate(values):
        rule.update({name: value}, step, lambda step=step: taken.append(step) or {"w": torch.tensor(step)})
        assert rule.state is None or rule.step == rule.state["w"]
    return taken


@pytest.mark.parametrize(("name", "taken"), [("val/accuracy", [0, 3]), ("val/loss", [0, 2, 4])])
def test_best_goes_by_the_direction_of_the_metric(name, taken):
    values = [0.5, 0.5, 0.4, 0.6, 0.3, math.nan]
    assert told(Best(name).fresh(0), name, values) == taken


def test_best_stops_after_evaluations_without_a_better_one():
    rule = Best("val/loss").fresh(2)
    told(rule, "val/loss", [3.0, 2.0, 2.5])
    assert not rule.exhausted
    told(rule, "val/loss", [2.0])  # a tie is no improvement
    assert rule.exhausted
    assert (rule.state["w"], rule.value) == (1, 2.0)


def test_last_keeps_nothing_and_never_stops():
    rule = Last().fresh(1)
    assert told(rule, "val/loss", [1.0, 2.0, 3.0]) == []
    assert rule.state is None
    assert not rule.exhausted


VALUES = [2.0, 2.3, 2.05, 1.5, 2.19, 2.2, 2.21, math.nan]


@pytest.mark.parametrize(("bound", "last"), [(1e-9, 3), (0.03, 3), (0.099, 4), (0.1, 4), (0.11, 6), (0.2, 6)])
def test_last_within_is_the_last_state_below_the_start_times_one_plus_the_bound(bound, last):
    taken = told(LastWithin("general/loss", bound).fresh(0), "general/loss", VALUES)
    assert taken[-1] == last
    assert taken == [0, *(step for step, value in enumerate(VALUES) if step and value < 2.0 * (1 + bound))]


def test_last_within_of_a_metric_of_which_more_is_better():
    assert told(LastWithin("a/accuracy", 0.1), "a/accuracy", [0.5, 0.46, 0.44, 0.9, 0.449, 0.451]) == [0, 1, 3, 5]
    assert told(LastWithin("a/score", 0.1), "a/score", [-2.0, -2.1, -2.3, -1.0]) == [0, 1, 3]


def test_last_within_ends_with_the_start_where_nothing_else_qualifies():
    rule = LastWithin("general/loss", 1e-3).fresh(3)
    assert told(rule, "general/loss", [2.0, 2.1, 2.2, 2.3]) == [0]
    assert rule.exhausted


@pytest.mark.parametrize("bound", [0, -1, math.nan])
def test_a_bound_that_nothing_can_meet_is_refused(bound):
    with pytest.raises(UserError, match=r"bound = .*: it is a share of the start's value"):
        LastWithin("val/loss", bound)


def test_a_fresh_rule_has_seen_nothing_and_a_loaded_one_goes_on():
    rule = LastWithin("val/loss", 0.1)
    first = rule.fresh(5)
    told(first, "val/loss", [1.0, 2.0])
    assert rule.fresh(5).state is None
    again = rule.fresh(5)
    again.load_state_dict(first.state_dict(), first.state)
    for each in (first, again):
        each.update({"val/loss": 1.05}, 2, lambda: {"w": torch.tensor(2)})
    assert again.state_dict() == first.state_dict()
    assert (again.step, again.waited) == (2, 0)


class States(Hook):
    """The first layer's weights at each evaluation."""

    def __init__(self):
        self.seen = []

    def on_evaluate(self, engine, split, metrics):
        self.seen.append((engine.step, metrics["val/score"], engine.task.first.weight.detach().clone()))


class Killed(Hook):
    def after_step(self, engine):
        if engine.global_step == 5:
            raise ZeroDivisionError


@pytest.mark.parametrize("bound", [1e-6, 0.3])
def test_a_stage_ends_with_the_last_state_within_the_bound_of_its_start_and_resumes_so(bound, tmp_path):
    def made():
        task = Regression(dropout=0.5, keep=LastWithin("val/score", bound))
        task.last.weight.data.mul_(0.1)
        return task

    options = settings(steps=8, lr=0.5, eval_every=1)
    states, task = States(), made()
    Engine(options, task, tmp_path / "whole", seed=7, hooks=[states]).fit()
    start = states.seen[0][1]
    assert [step for step, _, _ in states.seen] == list(range(9))
    within = [0, *(step for step, score, _ in states.seen[1:] if start - score < bound * abs(start))]
    assert torch.equal(task.first.weight, states.seen[within[-1]][2])
    with pytest.raises(ZeroDivisionError):
        Engine(options, made(), tmp_path / "parts", seed=7, hooks=[Killed()]).fit()
    again = made()
    Engine(options, again, tmp_path / "parts", seed=7, hooks=[Hook()]).fit()
    assert torch.equal(task.first.weight, again.first.weight)


def test_a_run_without_a_step_ends_as_it_began(tmp_path):
    task = Regression(keep=LastWithin("val/score", 1e-3))
    before = task.first.weight.clone()
    Engine(settings(steps=0), task, tmp_path, seed=7).fit()
    assert torch.equal(task.first.weight, before)
