"""The index of parts is true to the parts, and refuses in their words what it can judge."""

import dataclasses
import json

import pytest
from pydantic import BaseModel, ValidationError

from vision_lowrank.config.annotations import limits_of, text_of, type_of
from vision_lowrank.config.index import describe_parts
from vision_lowrank.config.options import indexed_options, options
from vision_lowrank.config.outline import outline
from vision_lowrank.config.sections import first_model, own_type
from vision_lowrank.errors import UserError
from vision_lowrank.registry import INDEX, PACKAGE, registry

ODD = ("x", "", -1, 0, 1, 2.5, 1e9, True, None, [], [1], ["x", "y"], [0.1, 0.2], {}, {"x": 1}, [{"type": "digits"}])


@pytest.fixture(scope="module")
def described():
    return json.loads(json.dumps(describe_parts()))


def test_index_is_true_to_the_parts(described):
    assert json.loads(INDEX.read_text()) == described, "run `make parts`"


def test_order_of_options_is_that_of_the_parts(described):
    """Records of runs list options in this order."""
    written = json.loads(INDEX.read_text())
    for kind, parts in described.items():
        for name, facts in parts.items():
            assert list(written[kind][name].get("options", ())) == list(facts.get("options", ())), "run `make parts`"


def with_sections():
    """Parts of the index whose options are those of a pydantic section."""
    return [part for part in registry.list() if part.kind != "adapter" and part.facts.get("options")]


def test_every_part_is_in_the_module_that_the_index_names():
    for part in registry.list():
        if part.facts:
            assert part.target.__module__ == f"{PACKAGE}.{part.facts['module']}"


def complaints(model, values):
    """What a model has against values: (key path without members of unions, type, message)."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        return {
            (tuple(part for part in item["loc"] if "[" not in str(part)), item["type"], item["msg"])
            for item in error.errors()
        }
    except UserError:
        return set()
    return set()


@pytest.mark.parametrize("part", with_sections(), ids=lambda part: f"{part.kind}-{part.name}")
def test_outline_refuses_what_the_part_refuses_in_the_same_words(part):
    own, compared = own_type(part), 0
    values = [{}, {"no_such_option": 1}]
    values += [{name: value} for name in part.facts["options"] for value in ODD]
    values += [
        {name: {inner: value}}
        for section in part.facts.get("sections", {}).values()
        for name in part.facts["options"]
        for inner in [*section, "no_such_option"]
        for value in ("x", -1)
    ]
    for given in values:
        expected = {item for item in complaints(own, given) if item[1] not in ("value_error", "assertion_error")}
        found = complaints(outline(part), given)
        assert found == expected or unjudged(own, given), given
        compared += bool(found)
    assert compared > 1


def unjudged(model, values):
    """Whether the part's own validators stopped before types were looked at, or changed what was given."""
    try:
        model.model_validate(values)
    except UserError:
        return True
    except ValidationError as error:
        return any(item["type"] == "value_error" for item in error.errors())
    return False


@pytest.mark.parametrize("part", registry.list("adapter"), ids=lambda part: part.name)
def test_options_of_adapters_are_those_of_their_dataclasses(part):
    own = options(part.config or part.target)
    assert indexed_options(part) == own
    assert list(indexed_options(part)) == list(own)
    assert part.facts["places"] == list(getattr(part.target, "places", ("q", "k", "v")))


def test_limits_of_adapters_are_those_that_the_methods_hold_to():
    """Whatever the index refuses, the dataclass refuses for Python users too; the limits themselves are allowed."""
    for part in registry.list("adapter"):
        for name, option in indexed_options(part).items():
            low, high = option.limits.get("ge"), option.limits.get("lt", option.limits.get("le"))
            for beyond in [low - 1] if low is not None else []:
                with pytest.raises(UserError, match=name):
                    part.target(**{name: beyond})
            for beyond in [high + 1] if high is not None else []:
                with pytest.raises(UserError, match=name):
                    part.target(**{name: beyond})


def test_a_part_of_another_package_is_checked_by_its_own_type(monkeypatch):
    monkeypatch.setitem(registry._registered, "hook", dict(registry._registered["hook"]))

    class Section(BaseModel):
        type: str

    @registry.register("hook", "of_this_test", summary="a test's")
    class Hook(Section):
        pass

    assert first_model("hook", "of_this_test") is Hook


@dataclasses.dataclass
class Odd:
    """No type for a config."""


def test_types_survive_as_text():
    for part in with_sections():
        model = outline(part)
        for name, field in own_type(part).model_fields.items():
            assert limits_of(model.model_fields[name].metadata) == limits_of(field.metadata)
            inner = {}
            text = text_of(model.model_fields[name].annotation, inner)
            assert text_of(type_of(text, inner), {}) == text == text_of(field.annotation, {})
    with pytest.raises(TypeError, match="has no text"):
        text_of(Odd, {})
