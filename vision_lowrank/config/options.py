"""Which options a method has: one place for the config loader, the documentation and the error messages.

The dataclass of a method is the only source: name, type and default of an option are those of its field, the
description is the field's ``metadata["help"]``, as in PEFT, and limits are there under their names in pydantic's
``Field``, such as ``{"help": "rank", "ge": 1}``. The index of parts has a copy, so that a section can be checked
without importing its method. Fields that say where an adapter sits or that PEFT fills in itself are no options:
:func:`vision_lowrank.attach` owns them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from ..errors import ConfigError, UserError, near_miss
from ..registry import Part
from .annotations import LIMITS, type_of

# Fields of PEFT configs that are set by attach, by PEFT itself, or that make no sense for a vision backbone.
HIDDEN = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "target_parameters", "layers_to_transform"),
    *("layers_pattern", "modules_to_save", "fan_in_fan_out", "bias", "megatron_config", "megatron_core"),
    *("runtime_config", "layer_replication", "trainable_token_indices", "ensure_weight_tying"),
    *("alora_invocation_tokens", "initializer", "offset"),
}


class Option(NamedTuple):
    """One option of a method.

    Attributes:
        type: its type, annotations resolved.
        default: its default, or ``dataclasses.MISSING`` where it must be given.
        description: what it does, in one line; may be empty for PEFT's own options.
        limits: of its value, such as ``{"ge": 1}``.
    """

    type: Any
    default: Any
    description: str
    limits: Mapping[str, Any] = {}


def options(config: Any, given: Mapping[str, Any] | None = None) -> dict[str, Option]:
    """Return the options of a method, in order of declaration.

    Args:
        config: a config dataclass, or a class with its own ``options(given)``, such as ``peft``'s.
        given: what the user gave, for methods whose options depend on it.
    """
    own = getattr(config, "options", None)
    return own(given or {}) if own is not None else dataclass_options(config)


def indexed_options(part: Part) -> dict[str, Option]:
    """Return the options of a registered adapter as the index has them, or of its config where the index lacks it."""
    if not part.facts:
        return options(part.config or part.target)
    return {
        name: Option(
            type_of(facts["type"], {}),
            facts.get("default", dataclasses.MISSING),
            facts["help"],
            {limit: facts[limit] for limit in LIMITS if limit in facts},
        )
        for name, facts in part.facts["options"].items()
    }


def dataclass_options(config: type) -> dict[str, Option]:
    """Return the options of a config dataclass: the names in its ``exposed``, or every field that is not hidden."""
    exposed = getattr(config, "exposed", None)
    types = field_types(config)
    return {
        field.name: Option(
            types.get(field.name, Any),
            _default(field),
            field.metadata.get("help", ""),
            {name: field.metadata[name] for name in LIMITS if name in field.metadata},
        )
        for field in dataclasses.fields(config)
        if (field.name in exposed if exposed else field.init and field.name not in HIDDEN)
    }


def check_options(
    name: str, known: Mapping[str, Option], given: Mapping[str, Any], more: bool = False
) -> dict[str, Any]:
    """Check plain values, such as those of a YAML file, and return them as the options' own types.

    Args:
        name: of the adapter, for messages.
        known: its options.
        given: name -> value.
        more: there may be options beside those known.

    Raises:
        ConfigError: unknown or missing options or values of the wrong type, all of them at once.
    """
    problems = [
        f"adapter '{name}' has no option '{option}'.{near_miss(option, known)} Known: {', '.join(known)}."
        for option in given
        if option not in known and not more
    ]
    problems += [
        f"adapter '{name}' needs the option '{option}': {facts.description or 'add it'}."
        for option, facts in known.items()
        if facts.default is dataclasses.MISSING and option not in given
    ]
    values = {}
    for option in given.keys() & known.keys():
        kind, limits = known[option].type, known[option].limits
        try:
            values[option] = TypeAdapter(Annotated[kind, Field(**limits)]).validate_python(given[option])
        except ValidationError as error:
            problems.append(f"adapter '{name}': {option} = {given[option]!r}: {error.errors()[0]['msg']}.")
    if problems:
        raise ConfigError(sorted(problems))
    return values


def build(part: Part, given: Mapping[str, Any]) -> Any:
    """Make the config of a registered adapter from plain values, such as those of a YAML file.

    Raises:
        ConfigError: as :func:`check_options`, or a value that the method refuses.
    """
    values = check_options(part.name, options(part.config or part.target, given), given)
    try:
        return part.target(**values)
    except UserError as error:
        raise ConfigError([f"adapter '{part.name}': {error}"]) from error
    except (TypeError, ValueError) as error:  # PEFT's own way to refuse a value
        raise ConfigError([f"adapter '{part.name}': {str(error).splitlines()[0]}"]) from error


def field_types(config: type) -> dict[str, Any]:
    """Return the types of a config dataclass's fields by name; none where PEFT imports one for type checkers only."""
    try:
        return typing.get_type_hints(config)
    except NameError:
        return {}


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
