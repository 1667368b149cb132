"""The contract of gradient rules (DESIGN, section 6): the same for all that are registered."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fixtures import adapted_task
from fixtures.adapted_task import Adapted, rule_of, settings, train
from fixtures.processes import run_in_two
from pydantic import ValidationError
from safetensors.torch import load_file

from vision_lowrank.config.schema import RunConfig
from vision_lowrank.engine import Engine, Hook
from vision_lowrank.engine.step_runner import TrainingDiverged
from vision_lowrank.errors import UserError
from vision_lowrank.registry import registry

SCRIPT = Path(adapted_task.__file__)

# Every rule once with options that act, and once with options that make it plain training (None: it has none).
RULES = {
    "allora": ({"eta": 3.0}, None),
    "ggpo": ({"sigma": 0.3, "beta": 0.1}, {"sigma": 0.0, "beta": 0.0}),
    "glad": ({"rho": 0.3, "strength": 0.7}, {"strength": 0.0}),
    "lisa": ({"blocks": 1, "interval": 3}, {"blocks": 2, "state": "keep"}),
    "lora_pro": ({}, None),
    "mgpo": ({"rho": 0.3}, {"rho": 0.0}),
}


def acting(name):
    return {"type": name, **RULES[name][0]}


def trained(engine):
    return {name: tensor.clone() for name, tensor in engine.task.trained_state().items()}


def assert_equal(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


class Interrupt(Hook):
    """Dies after a step."""

    def __init__(self, at):
        self.at = at

    def after_step(self, engine):
        if engine.step == self.at:
            raise ZeroDivisionError


def test_every_rule_is_here():
    assert set(RULES) == {part.name for part in registry.list("rule")}


@pytest.mark.parametrize("name", RULES)
def test_it_acts(name, tmp_path):
    plain, ruled = train(tmp_path / "plain", None, Adapted(rule=name)), train(tmp_path / "rule", acting(name))
    one, other = trained(plain), trained(ruled)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", [name for name, (_, limit) in RULES.items() if limit is not None])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_limit_case_is_plain_training(name, optimizer, tmp_path):
    plain = train(tmp_path / "plain", None, Adapted(rule=name), optimizer=optimizer)
    limit = train(tmp_path / "rule", {"type": name, **RULES[name][1]}, optimizer=optimizer)
    assert_equal(trained(plain), trained(limit), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_frozen_weights_never_move(name, tmp_path):
    task = Adapted(rule=name)
    changes = set(task.trained_state())
    before = {key: tensor.clone() for key, tensor in task.state_dict().items()}
    train(tmp_path, acting(name), task)
    for key, tensor in task.state_dict().items():
        if key not in changes:
            assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("name", RULES)
def test_resumed_run_equals_the_whole(name, tmp_path):
    whole = train(tmp_path / "whole", acting(name))
    engine, resumed = (
        Engine(
            settings(), Adapted(rule=name), tmp_path / "cut", seed=4, rule=rule_of(acting(name)), hooks=[Interrupt(at)]
        )
        for at in (5, None)
    )
    with pytest.raises(ZeroDivisionError):
        engine.fit()
    resumed.fit()
    assert_equal(trained(whole), trained(resumed))


@pytest.mark.parametrize("name", RULES)
def test_accumulation_in_halves_equals_the_whole_batch(name, tmp_path):
    whole = train(tmp_path / "whole", acting(name), batch_size=6)
    halves = train(tmp_path / "halves", acting(name), batch_size=6, accumulate=2)
    assert_equal(trained(whole), trained(halves), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_step_with_an_infinite_gradient_is_skipped(name, tmp_path):
    class Spiked(Adapted):
        """Its gradient is infinite though its loss is not."""

        def training_step(self, batch):
            losses = super().training_step(batch)
            losses["loss"].register_hook(lambda gradient: gradient * float("inf"))
            return losses

    task = Spiked(rule=name)
    engine = Engine(settings(steps=1), task, tmp_path, seed=4, rule=rule_of(acting(name)))
    before = {key: tensor.clone() for key, tensor in task.state_dict().items()}
    with pytest.raises(TrainingDiverged, match="finite in none of its steps"):
        engine.fit()
    for key, tensor in task.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("name", RULES)
def test_mixed_precision_stays_close(name, tmp_path):
    full = train(tmp_path / "full", acting(name), Adapted(dtype=torch.float32, rule=name), optimizer="sgd", lr=1e-2)
    half = train(
        tmp_path / "half",
        acting(name),
        Adapted(dtype=torch.float32, rule=name),
        optimizer="sgd",
        lr=1e-2,
        precision="bf16",
    )
    assert_equal(trained(full), trained(half), rtol=0.1, atol=0.05)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Folder -> a folder per rule, trained in two processes; one launch for all, since starting takes longest."""
    folder = tmp_path_factory.mktemp("two")
    run_in_two(SCRIPT, folder, json.dumps({name: acting(name) for name in RULES}), "steps=3")
    return folder


@pytest.mark.parametrize("name", RULES)
def test_two_processes_give_the_result_of_one(name, two_processes, tmp_path):
    one = trained(train(tmp_path, acting(name), steps=3))
    two = load_file(two_processes / name / "result.safetensors")
    assert_equal(one, two, rtol=1e-9, atol=1e-9)


# What an optimiser can be told, beside the base that it changes; all are honoured or refused, by whatever steps.
SGD = {"optimizer": "sgd"}
SETTINGS = {
    "optimizer": ({}, SGD),
    "lr": ({}, {"lr": 0.02}),
    "weight_decay": ({}, {"weight_decay": 0.3}),
    "clip_norm": ({}, {"clip_norm": 0.1}),
    "betas": ({}, {"betas": (0.5, 0.8)}),
    "sgd weight_decay": (SGD, SGD | {"weight_decay": 0.3}),
    "sgd clip_norm": (SGD, SGD | {"clip_norm": 0.1}),
    "sgd momentum": (SGD, SGD | {"momentum": 0.5}),
    "sgd nesterov": (SGD | {"momentum": 0.5}, SGD | {"momentum": 0.5, "nesterov": True}),
    "sgd betas": (SGD, SGD | {"betas": (0.5, 0.8)}),
    "adamw momentum": ({}, {"momentum": 0.5}),
}
# Forms of a rule that step in another way.
FORMS = {
    **{name: acting(name) for name in RULES},
    "allora, updates": {"type": "allora", "apply": "update"},
    "lora_pro, factors": {"type": "lora_pro", "momentum_space": "factor"},
    "mgpo, code": {"type": "mgpo", "rho": 0.3, "variant": "code"},
    "none": None,
}


def is_refused(form, setting):
    """What nothing could honour: betas of SGD, momentum of AdamW or of pairs that have none, SGD without moments."""
    needs_moments = form.startswith("mgpo") and setting in (
        "optimizer",
        "sgd weight_decay",
        "sgd clip_norm",
        "sgd momentum",
    )
    no_momentum = form == "lora_pro" and setting in ("sgd momentum", "sgd nesterov")
    no_sgd = form == "lora_pro, factors" and ("sgd" in setting or setting == "optimizer")
    return setting in ("sgd betas", "adamw momentum") or needs_moments or no_momentum or no_sgd


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("form", FORMS)
def test_every_setting_of_the_optimizer_is_honoured_or_refused(form, setting, tmp_path):
    """Without a head, whose steps would hide what those of the adapter make of a setting."""
    options, name = FORMS[form], FORMS[form] and FORMS[form]["type"]
    run = {"backbone": None, "task": None, "data": None, "adapter": SimpleNamespace(options={})}

    def train_with(folder, engine):
        engine = settings(**{"lr": 0.01} | engine)
        if options:
            rule_of(options).check(RunConfig.model_construct(**run, engine=engine))
        fitted = Engine(engine, Adapted(rule=name, head=False), folder, seed=4, rule=rule_of(options))
        fitted.fit()
        return trained(fitted)

    try:
        one, other = (train_with(tmp_path / str(n), engine) for n, engine in enumerate(SETTINGS[setting]))
    except (UserError, ValidationError):
        assert is_refused(form, setting)
    else:
        assert any(not torch.equal(one[key], other[key]) for key in one)
        assert not is_refused(form, setting)
