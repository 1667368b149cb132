"""What is said of settings without importing their parts, and what only the parts can say."""

from typing import Literal

import pytest
import yaml
from pydantic import Field

from vision_lowrank.config import (
    BackboneConfig,
    Section,
    check_paths,
    check_recipe,
    check_settings,
    load_config,
    to_tree,
    validate,
)
from vision_lowrank.errors import ConfigError
from vision_lowrank.paths import shipped
from vision_lowrank.registry import registry

RECIPES = sorted(p for p in shipped("configs").rglob("*.yaml") if "_base_" not in p.parts)
TREE = {"backbone": {"name": "tiny-clip"}, "task": {"type": "fewshot"}, "data": {"type": "digits"}}


@registry.register("hook", "check_test", summary="a hook of these tests")
class Hook(Section):
    """Options of a hook."""

    type: Literal["check_test"] = "check_test"
    epochs: int = Field(1, ge=1)

    def check(self, config):
        """Say something against another section."""
        if config.engine.steps == 7:
            raise ConfigError(["check_test cannot count to seven."])


def problems(function, *arguments):
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    return caught.value.problems


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_what_is_valid_passes_the_first_check(path):
    """Defaults filled in by the parts too: what a run records is read back."""
    check_settings(to_tree(load_config(path)))


def test_the_first_check_reports_all_sections_at_once():
    tree = TREE | {
        "backbone": {"name": "tiny-clop"},
        "task": {"type": "fewshot", "shotz": 3},
        "data": {"type": "digitz"},
        "adapter": {"type": "lora", "r": 0},
        "rule": {"type": "glad", "rho": -1},
        "initializer": {"type": "lora_sb", "samples": "few"},
        "hooks": [{"type": "check_test"}, {"type": "check_test", "epochs": 0}, 3],
        "engine": {"lr": 0},
    }
    found = [problem.removeprefix("config: ").partition(" Known:")[0] for problem in problems(check_settings, tree)]
    hooks = ", ".join(part.name for part in registry.list("hook"))
    assert sorted(found) == [
        "adapter: adapter 'lora': r = 0: Input should be greater than or equal to 1.",
        "backbone.name: unknown backbone 'tiny-clop'. Did you mean 'tiny-clip'?",
        "data.type: unknown data 'digitz'. Did you mean 'digits'?",
        "engine.lr: input should be greater than 0 (got 0)",
        "hooks.1.epochs: input should be greater than or equal to 1 (got 0)",
        f"hooks.2: needs a `type`, one of: {hooks}",
        "initializer.samples: input should be a valid integer, unable to parse string as an integer (got 'few')",
        "rule.rho: input should be greater than or equal to 0 (got -1)",
        "task.shotz: unknown key. Did you mean 'shots'?",
    ]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"type": "manipulation", "contrast": {"stpes": 3}}, "task.contrast.stpes: unknown key. Did you mean 'steps'?"),
        ({"type": "manipulation", "losses": {"giuo": 3}}, "task.losses.giuo: unknown key. Did you mean 'giou'?"),
        ({"type": "incremental"}, "task.protocol: required, but not given"),
        ({"type": "incremental", "protocol": {"name": "fscil", "bse": 1}}, "unknown key. Did you mean 'base'?"),
        ({"type": "fewshot", "transfer": [{"type": "digitz"}]}, "unknown data 'digitz'. Did you mean 'digits'?"),
        ({"type": "fewshot", "transfer": [{"typ": "x"}]}, "task.transfer.0: needs a `type`"),
        ({"type": "fewshot", "transfer": [{"type": "emoji", "label": "x"}]}, "task.transfer.0: label: Input should be"),
    ],
)
def test_sections_inside_sections(task, message):
    (problem,) = problems(check_settings, TREE | {"task": task})
    assert message in problem


def test_only_what_passes_the_first_check_is_seen_by_the_parts():
    odd = TREE | {"adapter": {"type": "block_lora", "r": 5}}
    check_settings(odd)
    assert "r = 5 is not divisible by blocks = 2" in problems(validate, odd)[0]
    assert len(problems(validate, odd | {"name": "a/b"})) == 1


def test_hooks_are_a_list_of_sections():
    config = validate(TREE | {"hooks": [{"type": "check_test", "epochs": 3}, {"type": "check_test"}]})
    assert config.hooks == (Hook(epochs=3), Hook())
    assert validate(to_tree(config)) == config
    assert validate(TREE).hooks == ()
    assert "hooks: input should be a valid tuple" in problems(validate, TREE | {"hooks": {"type": "check_test"}})[0]
    assert "seven" in problems(validate, TREE | {"hooks": [{"type": "check_test"}], "engine": {"steps": 7}})[0]
    assert "Did you mean 'check_test'?" in problems(validate, TREE | {"hooks": [{"type": "check_tset"}]})[0]


@pytest.mark.parametrize("name", ["tiny-clip", "timm:vit_tiny_patch16_224", "open_clip:ViT-B-16", "hf:x/y"])
def test_registered_families_of_backbones_are_accepted(name):
    assert BackboneConfig(name=name, weights="random").name == name


# --- files and folders -----------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    for name in ("pictures", "masks"):
        (tmp_path / name).mkdir()
    for name in ("table.csv", "weights.safetensors", "list.json"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"data": {"type": "folder", "root": "pictures"}}, []),
        ({"data": {"type": "folder", "root": "picturs"}}, ["data.root: folder 'picturs' does not exist."]),
        ({"data": {"type": "folder", "root": "table.csv"}}, ["data.root: 'table.csv' is no folder."]),
        ({"data": {"type": "csv", "file": "table.csv", "root": None}}, []),
        ({"data": {"type": "csv", "file": "pictures"}}, ["data.file: 'pictures' is no file."]),
        (
            {"data": {"type": "folder", "train": "a", "test": "b"}},
            ["data.train: folder 'a' does not exist.", "data.test: folder 'b' does not exist."],
        ),
        ({"data": {"type": "cifar100", "root": "nothing"}}, ["data.root: folder 'nothing' does not exist."]),
        ({"data": {"type": "cifar100", "root": "nothing", "download": True}}, []),
        ({"data": {"type": "edits", "folder": "made on first use"}}, []),
        ({"data": {"type": "edits", "folder": "x", "photos": "y"}}, ["data.photos: folder 'y' does not exist."]),
        ({"data": {"type": "manipulation", "path": "list.json"}}, []),
        ({"data": {"type": "manipulation", "path": "x"}}, ["data.path: file or folder 'x' does not exist."]),
        (
            {"data": {"type": "imdl", "train": ["masks", "m"], "tests": {"a": "list.json", "b": "c"}}},
            ["data.train.1: file or folder 'm' does not exist.", "data.tests.b: file or folder 'c' does not exist."],
        ),
        (
            {"data": {"type": "coco_boxes", "images": "pictures", "annotations": {"train": "list.json", "test": "t"}}},
            ["data.annotations.test: file 't' does not exist."],
        ),
        (
            {"data": {"type": "coco_boxes", "images": "pictures", "annotations": "t"}},
            ["data.annotations: file 't' does not exist."],
        ),
        (
            {"task": {"type": "fewshot", "transfer": [{"type": "digits"}, {"type": "folder", "root": "no"}]}},
            ["task.transfer.1.root: folder 'no' does not exist."],
        ),
        ({"backbone": {"name": "tiny-clip", "weights": "weights.safetensors"}}, []),
        ({"backbone": {"name": "timm:vit_tiny_patch16_224", "weights": "augreg_in21k"}}, []),
        ({"backbone": {"name": "timm:x", "weights": "no/such"}}, ["backbone.weights: file 'no/such' does not exist."]),
        (
            {"backbone": {"name": "tiny-clip", "weights": "weight.safetensors"}},
            ["backbone.weights: file 'weight.safetensors' does not exist. Did you mean 'weights.safetensors'?"],
        ),
    ],
)
def test_what_is_missing_on_the_disk_is_named(disk, monkeypatch, changes, missing):
    monkeypatch.chdir(disk)
    settings = check_settings(TREE | changes)
    if not missing:
        check_paths(settings)
        return
    found = problems(check_paths, settings)
    assert len(found) == len(missing)
    for said, expected in zip(found, missing, strict=True):
        assert said.startswith(f"config: {expected}")


def test_a_recipe_is_checked_with_its_files_but_loads_without_them(disk):
    path = disk / "own.yaml"
    path.write_text(yaml.safe_dump(TREE | {"data": {"type": "folder", "root": str(disk / "picture")}}))
    (problem,) = problems(check_recipe, path)
    assert problem.startswith(
        f"{path}: data.root: folder '{disk / 'picture'}' does not exist. Did you mean 'pictures'?"
    )
    assert load_config(path).data.root == str(disk / "picture")
    check_recipe(path, [f"data.root={disk / 'pictures'}"])
    assert problems(check_recipe, path, ["engine.stepz=3"]) == [
        "override 'engine.stepz=3': engine.stepz: unknown key. Did you mean 'steps'?"
    ]
