"""The sections of a config whose ``type`` names a registered part, and the models that check them.

A section is checked twice. First by what is known without importing its part: the index's outline of it. Then, where
nothing was wrong anywhere, by the part's own type. Two kinds are read without torch and need no outline: adapters,
which have a section of their own, and data sets, whose own types are cheap to import.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from ..registry import Part, registry
from .adapter import AdapterSection
from .outline import outline
from .schema import Section

# Section -> the kind of part that its `type` names.
KINDS = {
    "task": "task", "data": "data", "adapter": "adapter", "initializer": "initializer", "rule": "rule",
    "regularizer": "regularizer", "selection": "selection", "hooks": "hook",
}  # fmt: skip
# Of these, sections that are lists: each entry names a part.
LISTS = ("hooks",)
Key = tuple[str, ...]


def typed_sections(settings: Mapping[str, Any]) -> Iterator[tuple[Key, str, Any]]:
    """Yield (key path, kind, content) of every typed section there is; content may still be anything at all."""
    for name, kind in KINDS.items():
        content = settings.get(name)
        if name not in LISTS:
            yield from [] if content is None else [((name,), kind, content)]
        elif isinstance(content, list | tuple):
            yield from (((name, str(index)), kind, entry) for index, entry in enumerate(content))


def first_model(kind: str, type_name: str) -> type[BaseModel]:
    """Return the model that checks a section without importing torch; of a part that the index lacks, its own.

    Raises:
        UserError: no such part is registered.
    """
    part = registry.get(kind, type_name)
    if kind == "adapter":
        return AdapterSection
    return own_type(part) if kind == "data" or not part.facts else outline(part)


def own_model(kind: str, type_name: str) -> type[BaseModel]:
    """Return the model that a part itself brings for its section.

    Raises:
        UserError: no such part is registered.
    """
    part = registry.get(kind, type_name)
    return AdapterSection if kind == "adapter" else own_type(part)


def own_type(part: Part) -> type[BaseModel]:
    """Return what a part's section becomes; a backbone without options of its own accepts none."""
    return part.config or (Section if part.kind == "backbone" else part.target)


def known_keys(name: str, type_name: str) -> set[str]:
    """Return the keys that the section `name` may have with this type.

    Raises:
        UserError: no such part is registered.
    """
    kind = KINDS[name]
    return AdapterSection.keys(type_name) if kind == "adapter" else set(first_model(kind, type_name).model_fields)
