import dataclasses

import peft
import pytest

from vision_lowrank.adapters.peft_method import REFUSED, method_names, peft_method
from vision_lowrank.config.options import build, options
from vision_lowrank.errors import ConfigError, UserError
from vision_lowrank.registry import registry


def test_options_of_ours_are_the_papers_and_ranks_of_single_layers():
    common = ["r", "alpha", "dropout", "scaling", "rank_pattern", "alpha_pattern"]
    expected = {
        "lora": [*common, "init_lora_weights"],
        "block_lora": [*common, "blocks"],
        "comp_lora": [*common, "protect_rank", "protect_ratio", "protect_energy", "form"],
        "lamda": [*common, "start", "eta", "ranks", "candidates"],
    }
    for name, names in expected.items():
        found = options(registry.get("adapter", name).target)
        assert sorted(found) == sorted(names)
        assert all(option.description for option in found.values())
    assert options(registry.get("adapter", "block_lora").target)["blocks"][:2] == (int, 2)


def test_build_makes_the_config():
    config = build(registry.get("adapter", "block_lora"), {"r": 8, "blocks": 4, "scaling": "lora"})
    assert (config.r, config.blocks, config.scale) == (8, 4, 1 / 8)


def test_all_problems_come_at_once():
    with pytest.raises(ConfigError) as error:
        build(registry.get("adapter", "block_lora"), {"rr": 8, "blocks": "many", "alpha": None})
    assert len(error.value.problems) == 3
    assert any("no option 'rr'. Did you mean 'r'?" in problem for problem in error.value.problems)


def test_a_value_that_the_method_refuses_is_a_config_error():
    with pytest.raises(ConfigError, match="r = 5 is not divisible by blocks = 2"):
        build(registry.get("adapter", "block_lora"), {"r": 5})


def test_options_of_a_peft_method_depend_on_its_name():
    part = registry.get("adapter", "peft")
    assert options(part.config)["name"].default is dataclasses.MISSING
    known = options(part.config, {"name": "DORA"})
    assert {"r", "lora_alpha", "lora_dropout"} <= known.keys()
    assert "use_dora" not in known
    config = build(part, {"name": "dora", "r": 4})
    assert (type(config), config.use_dora, config.r) == (peft.LoraConfig, True, 4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "needs the option 'name'"),
        ({"name": "DORA", "rank": 4}, "has no option 'rank'"),
        ({"name": "LOHA", "r": "four"}, "r = 'four'"),
    ],
)
def test_mistakes_in_a_peft_section(given, words):
    with pytest.raises(ConfigError, match=words):
        build(registry.get("adapter", "peft"), given)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: peft_method("randlra"), "Did you mean 'RANDLORA'?"),
        (lambda: peft_method("PREFIX_TUNING"), "prompt tokens"),
        (lambda: peft_method("LOHA", rr=3), "no option 'rr'"),
        (lambda: peft_method("ADALORA"), "PEFT refuses these options of ADALORA"),
        (lambda: peft_method("DORA", use_dora=False), "no option 'use_dora'"),
        (lambda: peft_method("BLOCK_LORA"), "PEFT has no method"),
    ],
)
def test_mistakes_in_a_peft_method(call, words):
    with pytest.raises(UserError) as error:
        call()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_every_method_of_peft_is_offered_or_refused_with_a_reason():
    own = {kind.value for kind in peft.PeftType}
    assert own - set(method_names()) == set(REFUSED) & own
    assert len(set(method_names()) & own) >= 30
    assert all(REFUSED.values())
