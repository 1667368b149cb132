"""The steps of CONTRIBUTING.md, checked for every method of ours."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import vision_lowrank as vl
from vision_lowrank.adapters.base import AdapterConfig

ROOT = Path(__file__).parents[1]
OURS = [
    part
    for part in vl.methods("adapter")
    if part.target.__module__.startswith("vision_lowrank.") and part.name != "peft"
]

every_method = pytest.mark.parametrize("part", OURS, ids=lambda part: part.name)


def source(part):
    return ROOT / "vision_lowrank" / "adapters" / f"{part.name}.py"


@every_method
def test_one_file_named_after_the_method(part):
    assert part.target.__module__ == f"vision_lowrank.adapters.{part.name}"
    assert source(part).is_file()


@every_method
def test_docstring_gives_update_shapes_and_paper(part):
    text = ast.get_docstring(ast.parse(source(part).read_text()))
    assert part.paper in text
    assert "ΔW" in text
    assert re.search(r"\(\w+, \w+\)", text)


@every_method
def test_options_are_described(part):
    from vision_lowrank.config.options import options

    known = options(part.target)
    if issubclass(part.target, AdapterConfig):
        assert {"r", "alpha", "dropout", "scaling"} <= set(known)
    assert all(option.description for name, option in known.items()), [n for n, o in known.items() if not o.description]
    assert dataclasses.is_dataclass(part.target)


@every_method
def test_the_contract_runs_over_it(part):
    contract = (ROOT / "tests" / "contracts" / "test_adapter_contract.py").read_text()
    assert f'"{part.name}"' in contract


@every_method
def test_it_has_tests_docs_and_a_line_in_the_changelog(part):
    tests = [path.stem for path in (ROOT / "tests" / "adapters").glob("test_*.py")]
    assert any(part.name in stem for stem in tests), tests
    assert f"`{part.name}`" in (ROOT / "docs" / "methods.md").read_text()
    assert f"`{part.name}`" in (ROOT / "CHANGELOG.md").read_text()


def test_the_list_is_numbered_and_names_what_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", text, flags=re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 6
    for path in re.findall(r"`((?:tests|docs|vision_lowrank)/[\w/.]+)`", text):
        assert (ROOT / path.replace("my_method", "block_lora")).exists(), path
