"""The model of a section as the index of parts knows it: keys, types, limits and defaults of a part's options.

It refuses what the part's own type would refuse for these reasons, in the same words, and imports nothing. What the
part's validators say of values and combinations comes after it, from the part itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, Field, create_model

from ..registry import Part
from .annotations import LIMITS, type_of
from .schema import Section


class Outline(Section, validate_default=False):
    """Base of the models made here; defaults are those of the parts, which are checked there."""


@cache
def outline(part: Part) -> type[BaseModel]:
    """Return the model of a part that the index has."""
    models: dict[str, type[BaseModel]] = {}
    for name, options in part.facts.get("sections", {}).items():  # inner ones come first
        models[name] = _model(name, options, models)
    return _model(part.name, part.facts.get("options", {}), models)


def _model(
    name: str, options: Mapping[str, Mapping[str, Any]], models: Mapping[str, type[BaseModel]]
) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for key, facts in options.items():
        limits = {limit: facts[limit] for limit in LIMITS if limit in facts}
        field = Field(facts.get("default", ...), description=facts["help"], **limits)
        fields[key] = (type_of(facts["type"], models), field)
    return create_model(name, __base__=Outline, **fields)
