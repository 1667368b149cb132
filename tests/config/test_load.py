import pytest

from vision_lowrank.config import EngineConfig, load_config, to_tree, to_yaml, validate
from vision_lowrank.errors import ConfigError
from vision_lowrank.paths import shipped

RECIPES = sorted(p for p in shipped("configs").rglob("*.yaml") if "_base_" not in p.parts)
BLOCK = shipped("configs") / "fewshot" / "emoji_block_lora.yaml"

BASE = """
backbone: {name: tiny-clip}
task: {type: zeroshot}
data: {type: digits}
"""


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def problems(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return caught.value.problems


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid_and_reads_back(path):
    config = load_config(path)
    assert validate(to_tree(config)) == config


def test_there_are_recipes_to_check():
    assert len(RECIPES) >= 8


def test_bases_merge_in_order_and_the_file_wins(tmp_path):
    write(tmp_path, "one.yaml", BASE + "engine: {steps: 1, lr: 0.1}")
    write(tmp_path, "two.yaml", "engine: {steps: 2, batch_size: 5}")
    path = write(tmp_path, "own.yaml", "base: [one.yaml, two.yaml]\nengine: {batch_size: 7}")
    engine = load_config(path, ["engine.clip_norm=1e-1"]).engine
    assert (engine.steps, engine.lr, engine.batch_size, engine.clip_norm) == (2, 0.1, 7, 0.1)


def test_name_defaults_to_the_file(tmp_path):
    assert load_config(write(tmp_path, "my_run.yaml", BASE)).name == "my_run"


def test_circle_of_bases_is_refused(tmp_path):
    write(tmp_path, "a.yaml", "base: [b.yaml]")
    assert "circle" in problems(write(tmp_path, "b.yaml", "base: [a.yaml]"))[0]


def test_all_problems_come_at_once_with_place_and_suggestion():
    found = problems(BLOCK, "engine.stepps=3", "engine.lr=abc", "adapter.blokcs=1", "data.trainstyle=x", "bakbone=1")
    assert len(found) == 5
    text = "\n".join(found)
    assert "override 'engine.stepps=3': engine.stepps: unknown key. Did you mean 'steps'?" in text
    assert "engine.lr: input should be a valid number" in text
    assert "Did you mean 'blocks'?" in text
    assert "Did you mean 'train_style'?" in text
    assert "Did you mean 'backbone'?" in text


def test_problem_names_the_file_that_set_the_key(tmp_path):
    base = write(tmp_path, "base.yaml", BASE + "engine: {steps: -1}")
    path = write(tmp_path, "own.yaml", "base: base.yaml\nengine: {lr: 0.1}")
    assert problems(path) == [f"{base}: engine.steps: input should be greater than or equal to 0 (got -1)"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.type=block_lroa", "unknown adapter 'block_lroa'. Did you mean 'block_lora'?"),
        ("task.type=fewsho", "unknown task 'fewsho'. Did you mean 'fewshot'?"),
        ("data.type=emojy", "unknown data 'emojy'. Did you mean 'emoji'?"),
        ("adapter.r=7", "r = 7 is not divisible by blocks = 2"),
        ("adapter.r=x", "should be a valid integer"),
        ("data.train_style=fluant", "unknown emoji style 'fluant'. Did you mean 'fluent'?"),
        ("engine.precision=fp17", "input should be 'fp32', 'bf16' or 'fp16'"),
        ("task=3", "task: needs a `type`, one of: fewshot"),
        ("engine", "write key.path=value"),
        ("engine.steps=[", "not valid YAML"),
        ("name=a/b", "string should match pattern"),
        ("adapter={type: peft, name: DORE}", "Did you mean 'DORA'?"),
        ("seed=5", "`seeds` is given too: give seeds=[5] alone"),
        ("seeds=[]", "seeds"),
        ("seeds=[1,-1]", "greater than or equal to 0"),
        ("seeds=[1,2,1]", "a seed is given twice"),
    ],
)
def test_bad_value_is_named(override, message):
    assert message in "\n".join(problems(BLOCK, override))


def test_missing_file_names_a_sibling(tmp_path):
    write(tmp_path, "emoji_lora.yaml", BASE)
    assert "Did you mean 'emoji_lora.yaml'?" in problems(tmp_path / "emoji_lroa.yaml")[0]


@pytest.mark.parametrize("text", ["a: [", "- 1", "\tx: 1", "a: ${nope}"])
def test_unreadable_yaml_is_one_line(tmp_path, text):
    found = problems(write(tmp_path, "bad.yaml", text))
    assert "bad.yaml" in found[0]
    assert "\n" not in found[0]


def test_changed_type_keeps_only_keys_that_the_new_type_knows():
    adapter = load_config(BLOCK, ["adapter.type=lora", "adapter.r=3"]).adapter
    assert adapter.type == "lora"
    assert adapter.options["r"] == 3
    assert adapter.options["dropout"] == 0.25
    assert "blocks" not in adapter.options


def test_peft_methods_are_checked_by_their_own_options():
    adapter = load_config(BLOCK, ["adapter={type: peft, name: DORA, r: 3}"]).adapter
    assert adapter.config().use_dora is True


def test_seed_is_short_for_seeds_of_one(tmp_path):
    assert load_config(write(tmp_path, "none.yaml", BASE)).seeds == (1,)
    short = load_config(write(tmp_path, "one.yaml", BASE + "seed: 3\n"))
    assert (short.seeds, short.seed) == ((3,), 3)
    assert "seed" not in to_tree(short)
    assert validate(to_tree(short)) == short
    assert load_config(BLOCK).seeds == (1, 2, 3)
    assert load_config(BLOCK, ["seeds=[4]"]).seed == 4


def test_interpolation_resolves(tmp_path):
    path = write(tmp_path, "x.yaml", BASE + "engine: {batch_size: 8, eval_batch_size: '${engine.batch_size}'}")
    assert load_config(path).engine.eval_batch_size == 8


def test_yaml_of_a_config_is_stable():
    config = load_config(BLOCK)
    assert to_yaml(config) == to_yaml(load_config(BLOCK))
    assert EngineConfig().steps == 300
