"""References between settings: what they stand for, and that none of them ends in more than one line."""

import pytest

from vision_lowrank.config import check_recipe, load_config
from vision_lowrank.config.references import resolve_references
from vision_lowrank.errors import ConfigError

RECIPE = "backbone: {name: tiny-clip}\ntask: {type: fewshot}\ndata: {type: emoji}\n"


def chain(length, form, end):
    """Settings z0, z1, …, each `form` with @ for a reference to the next."""
    links = [f"z{i}: " + form.replace("@", f"${{z{i + 1}}}") for i in range(length)]
    return "out: '${z0}'\n" + "\n".join(links) + f"\nz{length}: {end}\n"


MULTIPLIES = {
    "texts": chain(12, "'@@@@@@@@'", "aaaa"),
    "lists": chain(12, "['@', '@', '@', '@', '@', '@', '@', '@']", "a"),
    "sections": chain(60, "{a: '@', b: '@'}", "{a: 1}"),
    "many": f"z: {1000 * 'a'}\nout: [{', '.join(3000 * ['!'])}]\n".replace("!", "'${z}'"),
    "long chain": chain(3000, "'@'", "a"),
}
ODD = [
    "${out}", "a${name}", "${}", "${", "${nope}", "${engine..lr}", "${${name}}", "${oc.env:HOME}", "x${backbone}",
    "${backbone.name.x}", "${.name}", "${a\nb", "${seeds.99999999999999999999}",
]  # fmt: skip


def test_a_reference_is_the_value_and_within_a_text_its_text():
    tree = {
        "a": {"b": 3, "c": "${e}"},
        "d": "${a.b}",
        "e": "x${a.b}y${a.b}",
        "f": ["${a}", "$ {", "${l.1}"],
        "l": [1, 2.5],
    }
    own = {"b": 3, "c": "x3y3"}
    assert resolve_references(tree) == {
        "a": own, "d": 3, "e": "x3y3", "f": [own, "$ {", 2.5], "l": [1, 2.5],
    }  # fmt: skip
    assert tree["d"] == "${a.b}"


@pytest.mark.parametrize("text", MULTIPLIES.values(), ids=MULTIPLIES)
def test_references_that_multiply_are_one_line(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + text)
    with pytest.raises(ConfigError, match=r"more than 1,048,576|too deep") as refused:
        check_recipe(path)
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize("text", ODD)
def test_what_is_no_reference_is_one_line(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{RECIPE}name: '${{out}}'\n" if text.startswith("a$") else RECIPE)
    with pytest.raises(ConfigError) as refused:
        check_recipe(path, [f"out='{text}'"])
    assert len(refused.value.problems) == 1
    assert "\n" not in str(refused.value)


def test_a_misspelt_reference_names_the_nearest_key(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE + "engine: {steps: 7, eval_every: '${engine.stebs}'}\n")
    with pytest.raises(ConfigError, match=r"engine\.stebs} refers to no setting\. Did you mean 'steps'\?"):
        load_config(tmp_path / "recipe.yaml")
