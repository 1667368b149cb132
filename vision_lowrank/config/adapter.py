"""The ``adapter:`` section of a config: where an adapter sits, and the options of its method.

In ``{type: block_lora, towers: [vision], layers: "-4:", modules: [q, v], r: 8, blocks: 2}``, `type` names a registered
adapter; `towers`, `layers` and `modules` are those of :func:`vision_lowrank.attach`; every other key is an option of
the method and is checked against it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import Field, model_serializer, model_validator

from ..registry import Part, registry
from .options import build, options
from .schema import Section

# Where an adapter sits unless its method or the user says otherwise: logical names of modules.
PLACES = ("q", "k", "v")
PLAIN = (str, int, float, bool, list, tuple, type(None))


class AdapterSection(Section):
    """A checked ``adapter:`` section."""

    type: str = Field(description="a registered adapter")
    towers: tuple[str, ...] | None = Field(None, description="towers to adapt; null = all the backbone has")
    layers: str | list[int] | dict[str, str | list[int]] = Field(
        "all",
        description='blocks: "all", numbers, a slice such as "-4:", a name such as "top3", or one of these per tower',
    )
    modules: tuple[str, ...] = Field(PLACES, description="logical names: q k v o fc1 fc2 mlp attention block")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the method")

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Flat keys -> own keys and options; the method checks its options by building its config."""
        own = {key: value for key, value in values.items() if key in cls.model_fields and key != "options"}
        given = {key: value for key, value in values.items() if key not in own}
        part = registry.get("adapter", str(values["type"]))
        build(part, given)
        own.setdefault("modules", getattr(part.target, "places", PLACES))
        return own | {"options": _defaults(part) | given}

    @model_serializer
    def _flatten(self) -> dict[str, Any]:
        where = {"type": self.type, "towers": self.towers, "layers": self.layers, "modules": self.modules}
        return where | self.options

    @classmethod
    def keys(cls, type_name: str) -> set[str]:
        """The keys that a section of this type may have."""
        part = registry.get("adapter", type_name)
        return set(cls.model_fields) - {"options"} | set(options(part.config or part.target))

    def config(self) -> Any:
        """The method's config, a dataclass of PEFT's, not yet attached to anything."""
        return build(registry.get("adapter", self.type), self.options)


def _defaults(part: Part) -> dict[str, Any]:
    """Defaults that a record should show: those of methods whose options are known without reading the section."""
    known = options(part.config or part.target)
    return {
        name: option.default
        for name, option in known.items()
        if option.default is not dataclasses.MISSING and isinstance(option.default, PLAIN)
    }
