"""YAML from anywhere: one line in bounded time, whatever it holds; and the numbers that settings are written as."""

import pytest

from vision_lowrank.config import check_recipe, load_config, read_recipe
from vision_lowrank.config.yaml_text import parse_yaml
from vision_lowrank.errors import ConfigError

RECIPE = "backbone: {name: tiny-clip}\ntask: {type: fewshot}\ndata: {type: emoji}\n"
BOMB = "[&a [x, x, x, x, x, x, x, x, x], " + ", ".join(
    f"&{chr(98 + i)} [{', '.join(9 * ['*' + chr(97 + i)])}]" for i in range(12)
) + "]"  # fmt: skip
ODD = [
    "!!int x", "!!timestamp x", "!!float x", "!!bool x", "!!binary x", "!!python/object:os.x 1", "!!set {a}",
    "9" * 10_000, "0x" + "f" * 5000, "[" * 3000 + "]" * 3000, "{a: " * 1500 + "1" + "}" * 1500, "&a [*a]",
    "&a {b: *a}", "*a", ".nan", "-.inf", "1e400", BOMB, "{a: 1, a: 2}", "[", "? [a]\n: b", "x" * 2**21,
]  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=lambda text: text[:20].replace("\n", " "))
def test_what_no_setting_needs_is_one_line(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    for content, overrides in ((f"{RECIPE}engine: {{steps: {text}}}\n", ()), (RECIPE, (f"engine.steps={text}",))):
        path.write_text(content)
        with pytest.raises(ConfigError) as refused:
            check_recipe(path, overrides)
        assert len(refused.value.problems) == 1
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("-2.5e-1", -0.25), (".5", 0.5), ("3.", 3.0), ("12", 12), ("-7", -7), ("0", 0),
        ("0x10", 16), ("1_000", 1000), ("2020-01-01", "2020-01-01"), ("1:30:00", "1:30:00"), ("e3", "e3"),
        ("4.1.2", "4.1.2"), ("3e", "3e"), ("-", [None]), ("true", True), ("~", None), ("'5'", "5"),
        ("[1, 2.0]", [1, 2.0]), ('"-4:"', "-4:"), ("{lr: 1e-3}", {"lr": 1e-3}), ("&a [1]", [1]), ("", None),
        ("[&a [1], *a]", [[1], [1]]),
    ],
)  # fmt: skip
def test_values_are_what_they_look_like(text, value):
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_files_that_name_each_other_tenfold_end_at_once(tmp_path):
    for level in range(8):
        (tmp_path / f"{level}.yaml").write_text(f"base: [{', '.join(10 * [f'{level + 1}.yaml'])}]\n")
    (tmp_path / "8.yaml").write_text(RECIPE)
    with pytest.raises(ConfigError, match=r"more than 64 files"):
        read_recipe(tmp_path / "0.yaml")


@pytest.mark.parametrize("base", ["3", "{a: 1}", "[3]", "[~]", "[[x.yaml]]", "true", "''"])
def test_bases_are_names_of_files(tmp_path, base):
    (tmp_path / "recipe.yaml").write_text(f"base: {base}\n{RECIPE}")
    with pytest.raises(ConfigError, match=r"base: .* is no file"):
        read_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("name", ["..", ".", "'...'", ".hidden", "a/b", "/tmp/x", "''", "'a\\n'", "x" * 201, "3"])
def test_a_name_never_leaves_the_folder_of_runs(tmp_path, name):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(ConfigError, match="name: "):
        load_config(tmp_path / "recipe.yaml", [f"name={name}"])


@pytest.mark.parametrize(
    "override", ["task.type={a: 1}", "task.type=[1]", "task=3", "adapter=[1]", "hooks=[{type: 3}]"]
)
def test_numbers_and_lists_where_names_belong(tmp_path, override):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(ConfigError):
        check_recipe(tmp_path / "recipe.yaml", [override])
