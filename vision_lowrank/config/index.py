"""What the index of parts, ``parts.json``, says of each: ``{kind: {name: facts}}`` with::

    module       that defines it, dotted below the package
    summary      one line
    paper        its source, or empty
    gives        data sets: what they give, in words that tasks ask for
    options      name -> {type, help, default (absent where it must be given), and limits such as ge}; absent for parts
                 that take plain arguments, as backbones do
    sections     name -> options, of the sections that types of options name, inner ones first
    places       adapters: logical names of the modules that it is for
    open         adapters: there are more options, which depend on those given

It is written from the parts themselves, all of which are imported for it, by ``make parts``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..files import write_text
from ..registry import INDEX, PACKAGE, PACKAGES, Part, registry
from .adapter import places
from .annotations import limits_of, marked, text_of
from .options import options


def write_index(path: Path = INDEX) -> None:
    """Describe all parts of this package in a file."""
    write_text(path, _json(describe_parts()) + "\n")


def describe_parts() -> dict[str, dict[str, dict[str, Any]]]:
    """Return kind -> name -> facts of every part of this package, sorted, after importing them all."""
    for kind in PACKAGES:
        registry.load(kind)
    own = {kind: [part for part in registry.registered(kind) if _is_ours(part)] for kind in sorted(PACKAGES)}
    return {kind: {part.name: describe(part) for part in parts} for kind, parts in own.items()}


def describe(part: Part) -> dict[str, Any]:
    """Return the facts of one part as plain JSON values."""
    facts = {
        "module": part.target.__module__.removeprefix(f"{PACKAGE}."),
        "summary": part.summary,
        "paper": part.paper,
    }
    if part.gives:
        facts["gives"] = part.gives
    schema = part.config or part.target
    if part.kind == "adapter":
        facts["places"] = list(places(part))
        if hasattr(schema, "options"):
            facts["open"] = True
        facts["options"] = {
            name: _option(text_of(option.type, {}), option.default, option.description, option.limits)
            for name, option in options(schema).items()
        }
    elif isinstance(schema, type) and issubclass(schema, BaseModel):
        sections: dict[str, Any] = {}
        facts["options"] = _options(schema, sections)
        if sections:
            facts["sections"] = sections
    return facts


def _options(model: type[BaseModel], sections: dict[str, Any]) -> dict[str, Any]:
    """Describe the options of a section; `sections` gets those of the sections inside it."""
    described, inner = {}, dict[str, type[BaseModel]]()
    for name, field in model.model_fields.items():
        default = dataclasses.MISSING if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            default = default.model_dump(mode="json", exclude_defaults=True)
        text = text_of(marked(field.annotation, field.metadata), inner)
        described[name] = _option(text, default, field.description or "", limits_of(field.metadata))
    for name, section in inner.items():
        sections[name] = _options(section, sections)
    return described


def _option(type_text: str, default: Any, description: str, limits: Mapping[str, Any]) -> dict[str, Any]:
    facts = {"type": type_text, "help": description}
    if default is not dataclasses.MISSING:
        facts["default"] = default
    return facts | dict(limits)


def _is_ours(part: Part) -> bool:
    return part.target.__module__.startswith(f"{PACKAGE}.")


def _json(value: Any, indent: str = "") -> str:
    """Write JSON in which an object without objects inside is one line."""
    if not isinstance(value, dict) or not any(isinstance(each, dict) and each for each in value.values()):
        return json.dumps(value, ensure_ascii=False)
    lines = (f"{indent} {json.dumps(key)}: {_json(each, indent + ' ')}" for key, each in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
