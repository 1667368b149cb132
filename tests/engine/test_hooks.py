"""Hooks that a config names: ours, and those of other packages."""

import json
import subprocess
import sys

import pytest
import torch

import vision_lowrank as vl
from vision_lowrank.adapters.tuner import adapter_layers
from vision_lowrank.config import load_config
from vision_lowrank.engine import Engine, Hook
from vision_lowrank.engine.keep_adapters import KeepAdapters
from vision_lowrank.errors import ConfigError, UserError
from vision_lowrank.studies.run import build_task, run

KEEP = "hooks=[{{type: keep_adapters{}}}]"


def config_of(recipe, *overrides):
    """The recipe's run of one seed and six epochs of one step."""
    return load_config(recipe, ["seeds=[1]", "engine.steps=6", "engine.eval_every=2", *overrides])


def folders(seed):
    return sorted(path.name for path in (seed / "adapters").iterdir())


def trained(config, folder, *, hooks=()):
    task = build_task(config, 1)
    own = [section.start() for section in config.hooks]
    engine = Engine(config.engine, task, folder, seed=1, hooks=[*own, *hooks])
    return task, engine


class Crash(Hook):
    def __init__(self, at):
        self.at = at

    def after_step(self, engine):
        if engine.global_step == self.at:
            raise ZeroDivisionError


def tensors_of(model):
    return [
        t.clone() for _, layer in adapter_layers(model) for t in layer.weight_update["default"].state_dict().values()
    ]


class Watch(Hook):
    """The adapter's tensors after every step."""

    def __init__(self):
        self.seen = []

    def after_step(self, engine):
        self.seen.append(tensors_of(engine.task.model.backbone))


@pytest.mark.parametrize(("options", "epochs"), [
    ("", [1, 2, 3, 4, 5, 6]), (", last: 2", [5, 6]), (", every: 2", [2, 4, 6]), (", every: 4, last: 3", [4]),
    (", every: 2, last: 2", [4, 6]),
])  # fmt: skip
def test_adapters_of_epochs_are_kept_and_change_nothing(recipe, tmp_path, options, epochs):
    config = config_of(recipe, KEEP.format(options))
    watch = Watch()
    task, engine = trained(config, tmp_path / "seed", hooks=[watch])
    engine.fit()
    assert folders(tmp_path / "seed") == [f"epoch-{epoch:04d}" for epoch in epochs]
    plain, engine = trained(config_of(recipe), tmp_path / "plain")
    engine.fit()
    pairs = zip(task.state_dict().values(), plain.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    backbone = vl.load_backbone("tiny-clip", config.backbone.weights)
    model = vl.load(tmp_path / "seed" / "adapters" / f"epoch-{epochs[0]:04d}", backbone)
    pairs = zip(tensors_of(model), watch.seen[epochs[0] - 1], strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_resumed_run_repeats_its_epochs_without_duplicates(recipe, tmp_path):
    config = config_of(recipe, KEEP.format(", last: 2"))
    with pytest.raises(ZeroDivisionError):
        trained(config, tmp_path / "seed", hooks=[Crash(5)])[1].fit()  # the newest checkpoint is of step 4
    assert folders(tmp_path / "seed") == ["epoch-0004", "epoch-0005"]
    trained(config, tmp_path / "seed", hooks=[Crash(0)])[1].fit()
    assert folders(tmp_path / "seed") == ["epoch-0005", "epoch-0006"]
    whole = trained(config, tmp_path / "whole")[1]
    whole.fit()
    for name in ("epoch-0005", "epoch-0006"):
        sums = [
            json.loads((tmp_path / run / "adapters" / name / "vision_lowrank.json").read_text())["sha256"]
            for run in ("seed", "whole")
        ]
        assert sums[0] == sums[1]


def test_a_model_without_adapter_is_refused_in_one_line(recipe, tmp_path):
    bare = ["adapter=null", "task.head=linear"]
    message = r"hook keep_adapters: the model has no adapter to keep: set `adapter`, or leave the hook out\.$"
    with pytest.raises(ConfigError, match=message):
        config_of(recipe, *bare, KEEP.format(""))
    config = config_of(recipe, *bare)
    with pytest.raises(UserError, match=f"^{message}"):
        trained(config, tmp_path / "seed", hooks=[KeepAdapters().start()])[1].fit()


def test_a_run_starts_the_hooks_of_its_config(recipe):
    config = config_of(recipe, KEEP.format(", last: 1"), "engine.steps=2")
    assert config.hooks == (KeepAdapters(last=1),)
    run(config)
    assert folders(recipe.parent / "runs" / config.name / "seed-1") == ["epoch-0002"]


def test_mistakes_in_a_hook_are_named(recipe):
    with pytest.raises(ConfigError, match=r"hooks\.0\.type: unknown hook 'keep_adapter'\. Did you mean"):
        config_of(recipe, "hooks=[{type: keep_adapter}]")
    with pytest.raises(ConfigError, match=r"hooks\.0\.lst: .*Did you mean 'last'"):
        config_of(recipe, KEEP.format(", lst: 2"))


OUTSIDE = """
from typing import Literal
from vision_lowrank import register
from vision_lowrank.engine import Hook, HookSection

@register("hook", "count_steps", summary="count the steps of a run")
class CountSteps(HookSection):
    type: Literal["count_steps"] = "count_steps"
    first: int = 0

    def start(self):
        return Counter(self.first)

class Counter(Hook):
    def __init__(self, steps):
        self.steps = steps

    def after_step(self, engine):
        self.steps += 1
"""


def test_another_package_adds_a_hook_by_entry_point(recipe, tmp_path):
    (tmp_path / "outside.py").write_text(OUTSIDE)
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vision_lowrank]\noutside = outside\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from vision_lowrank.config import load_config; "
        f"config = load_config({str(recipe)!r}, ['hooks=[{{type: count_steps, first: 3}}]']); "
        "hook = config.hooks[0].start(); hook.after_step(None); print(hook.steps)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "4", done.stderr
