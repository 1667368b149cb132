import pytest

from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.config import load_config, to_tree, validate
from vision_lowrank.errors import ConfigError

RECIPE = """
backbone: {backbone}
seeds: [1]
task: {{type: fewshot, shots: 2}}
data: {{type: digits}}
"""


def recipe(tmp_path, backbone, *overrides):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(backbone=backbone))
    return load_config(path, overrides)


def test_options_are_those_of_the_family_and_become_keywords_of_its_loader(tmp_path):
    config = recipe(
        tmp_path, "{name: 'timm:vit_tiny_patch16_224', weights: random, image_size: 32, options: {pooler: true}}"
    )
    assert config.backbone.arguments == {
        "name": "timm:vit_tiny_patch16_224", "weights": "random", "image_size": 32, "pooler": True,
        "drop_path": 0.0,
    }  # fmt: skip
    backbone = load_backbone(**config.backbone.arguments)
    assert backbone.spec | {"drop_path": 0.0} == config.backbone.arguments  # what is off leaves no trace
    assert validate(to_tree(config)) == config


def test_options_that_are_left_out_leave_no_trace_in_the_spec(tmp_path):
    config = recipe(
        tmp_path, "{name: 'hf:tiny-internvl3', weights: random, options: {}}", "backbone.options.dtype=bfloat16"
    )
    assert load_backbone(**config.backbone.arguments).spec == {
        "name": "hf:tiny-internvl3", "weights": "random", "dtype": "bfloat16",
    }  # fmt: skip
    for backbone in ("{name: tiny-clip}", "{name: tiny-clip, options: {}}"):
        plain = recipe(tmp_path, backbone).backbone
        assert load_backbone(**plain.arguments).spec == {"name": "tiny-clip", "weights": None}


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("{name: timm:v, weights: x, options: {poler: 1}}", "options.poler: unknown key. Did you mean 'pooler'?"),
        ("{name: timm:v, weights: x, options: {dtype: x}}", "options.dtype: unknown key. Known: pooler, drop_path."),
        ("{name: tiny-clip, options: {pooler: true}}", "backbone.options.pooler: unknown key. Known: none."),
        ("{name: hf:v, weights: x, options: {dtype: float8}}", "backbone.options.dtype: input should be 'float32'"),
        ("{name: timn:vit, options: {pooler: true}}", "backbone.name: unknown backbone 'timn'. Did you mean 'timm'?"),
        ("{name: timm:v, weights: x, options: 3}", "backbone.options: input should be a valid dictionary"),
        ("{name: timm:v, weights: x, pooler: true}", "backbone.pooler: unknown key."),
    ],
)  # fmt: skip
def test_options_of_another_family_are_refused_with_all_other_problems(tmp_path, backbone, message):
    with pytest.raises(ConfigError) as refused:
        recipe(tmp_path, backbone, "engine.stepps=3")
    assert message in str(refused.value)
    assert "engine.stepps: unknown key. Did you mean 'steps'?" in str(refused.value)
