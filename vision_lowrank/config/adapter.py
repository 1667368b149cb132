"""The ``adapter:`` section of a config: where an adapter sits, and the options of its method.

In ``{type: block_lora, towers: [vision], layers: "-4:", modules: [q, v], r: 8, blocks: 2}``, `type` names a registered
adapter; `towers`, `layers` and `modules` are those of :func:`vision_lowrank.attach`; every other key is an option of
the method. Names, types and limits of options are checked by the index, without importing the method, which says the
rest when :meth:`AdapterSection.config` makes its config.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import Field, model_serializer, model_validator

from ..registry import Part, registry
from .marks import check_range
from .options import build, check_options, indexed_options
from .schema import Section

# Where an adapter sits unless its method or the user says otherwise: logical names of modules.
PLACES = ("q", "k", "v")
PLAIN = (str, int, float, bool, list, tuple, type(None))


class AdapterSection(Section):
    """An ``adapter:`` section whose keys, types and limits are right."""

    type: str = Field(description="a registered adapter")
    towers: tuple[str, ...] | None = Field(None, description="towers to adapt; null = all the backbone has")
    layers: str | list[int] | dict[str, str | list[int]] = Field(
        "all",
        description='blocks: "all", numbers, a slice such as "-4:", a name such as "top3", or one of these per tower',
    )
    modules: tuple[str, ...] = Field(PLACES, description="logical names: q k v o fc1 fc2 mlp attention block; or all")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the method")

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Gather flat keys into own keys and options."""
        own = {key: value for key, value in values.items() if key in cls.model_fields and key != "options"}
        given = {key: value for key, value in values.items() if key not in own}
        part = registry.get("adapter", str(values["type"]))
        known = indexed_options(part)
        for value in given.values():
            check_range(value)
        check_options(part.name, known, given, more=_open(part))
        own.setdefault("modules", places(part))
        defaults = {
            name: option.default
            for name, option in known.items()
            if option.default is not dataclasses.MISSING and isinstance(option.default, PLAIN)
        }
        return own | {"options": defaults | given}

    @model_serializer
    def _flatten(self) -> dict[str, Any]:
        where = {"type": self.type, "towers": self.towers, "layers": self.layers, "modules": self.modules}
        return where | self.options

    @classmethod
    def keys(cls, type_name: str) -> set[str]:
        """Return the keys that a section of this type may have."""
        return set(cls.model_fields) - {"options"} | set(indexed_options(registry.get("adapter", type_name)))

    def config(self) -> Any:
        """Build the method's config, a dataclass of PEFT's, not yet attached to anything.

        Raises:
            ConfigError: the method refuses an option.
        """
        return build(registry.get("adapter", self.type), self.options)


def places(part: Part) -> tuple[str, ...]:
    """Return the logical names of the modules that a registered adapter is for, unless the user names others."""
    return tuple(part.facts["places"] if part.facts else getattr(part.target, "places", PLACES))


def _open(part: Part) -> bool:
    """Tell whether the options depend on what is given, as ``peft``'s do: then only the method knows them all."""
    return part.facts.get("open", False) if part.facts else hasattr(part.config, "options")
