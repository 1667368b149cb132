"""Every number that a config takes has a range, every text a form, and ~ is the user's own folder."""

import os

import pytest
from pydantic import TypeAdapter

from vision_lowrank.config import check_recipe, load_config
from vision_lowrank.config.marks import LARGEST, File, FileOrTag, Folder, check_range
from vision_lowrank.config.schema import BackboneConfig, EngineConfig, Section
from vision_lowrank.config.sections import KINDS, first_model
from vision_lowrank.errors import ConfigError
from vision_lowrank.registry import registry

RECIPE = "backbone: {name: tiny-clip}\ntask: {type: fewshot}\ndata: {type: emoji}\n"


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def refused(recipe, *overrides):
    with pytest.raises(ConfigError) as error:
        load_config(recipe, overrides)
    assert "\n" not in error.value.problems[0]
    return error.value.problems[0]


@pytest.mark.parametrize("name", [name for name, field in EngineConfig.model_fields.items() if "int" in str(field)])
def test_every_number_of_the_engine_has_an_upper_end(recipe, name):
    assert f"engine.{name}: " in refused(recipe, f"engine.{name}={10**10}")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("engine.lr=1e38", "engine.lr"), ("engine.lr=0", "engine.lr"), ("engine.betas=[0.9, 1.0]", "engine.betas.1"),
        ("engine.betas=[-0.1, 0.9]", "engine.betas.0"), ("engine.threads=1000000", "engine.threads"),
        ("engine.steps=100000000000000000000", "engine.steps"), ("engine.min_lr=1e9", "engine.min_lr"),
        ("seeds=[-1]", "seeds.0"), ("seed=-1", "seeds.0"), ("seeds=[4294967296]", "seeds.0"),
        ("backbone.image_size=20000", "backbone.image_size"), ("backbone.crop_pct=0.001", "backbone.crop_pct"),
        ("task.crop=[0, 1]", "task.crop.0"), ("task.crop=[0.5, 2]", "task.crop.1"),
        ("task.crop=[0.9, 0.1]", "task.crop"), ("task.shots=100000000000000", "task.shots"),
        ("adapter={type: lora, r: 10000000000000}", "adapter"), ("task.templates=['a {} {}']", "task.templates"),
        ("task.templates=['a {name}']", "task.templates"), ("task.templates=['} {}']", "task.templates"),
        ("task.templates=['plain']", "task.templates"), ("task.templates=[]", "task.templates"),
        ("data.background=etihw", "data.background"), ("out=''", "out"),
    ],
)  # fmt: skip
def test_numbers_beyond_their_range_and_texts_without_their_form(recipe, override, key):
    said = refused(recipe, override)
    assert f": {key}" in said or "not valid YAML" in said


@pytest.mark.parametrize("value", [LARGEST * 10, -LARGEST * 10, float("inf"), float("nan"), LARGEST * 10.0])
def test_no_section_takes_a_number_that_nobody_can_mean(value):
    with pytest.raises(ValueError, match="no setting goes beyond"):
        check_range([1, value])
    assert check_range([LARGEST, "text", None, True, {"section": value}])
    for kind in {*KINDS.values()} - {"adapter"}:
        for part in registry.list(kind):
            model = first_model(kind, part.name)
            assert issubclass(model, Section)
            for name in model.model_fields:
                with pytest.raises(ValueError, match=rf"{name}\n.*(no setting goes beyond|finite)"):
                    model.model_validate({"type": part.name, name: value})


@pytest.mark.parametrize("kind", [Folder, File, FileOrTag])
def test_the_users_folder_is_expanded_wherever_an_option_names_a_place(kind):
    assert TypeAdapter(kind).validate_python("~/x") == os.path.expanduser("~/x")


def test_the_users_folder_in_a_recipe(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    check_recipe(recipe, ["data={type: folder, root: ~/pictures}"])
    config = load_config(recipe, ["data={type: folder, root: ~/pictures}"])
    assert config.data.root == str(tmp_path / "pictures")
    assert BackboneConfig(name="tiny-clip", weights="~/w.pt").weights == str(tmp_path / "w.pt")
