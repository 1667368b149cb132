"""Which options a method has: one place for the config loader, the documentation and the error messages.

The dataclass of a method is the only source: name, type and default of an option are those of its field, the
description is the field's ``metadata["help"]``, as in PEFT. Fields that say where an adapter sits or that PEFT fills
in itself are no options: :func:`vision_lowrank.attach` owns them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from ..errors import ConfigError, UserError, near_miss
from ..registry import Part

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
    """

    type: Any
    default: Any
    description: str


def options(config: Any, given: Mapping[str, Any] | None = None) -> dict[str, Option]:
    """The options of a method, in order of declaration.

    Args:
        config: a config dataclass, or a class with its own ``options(given)``, such as ``peft``'s.
        given: what the user gave, for methods whose options depend on it.
    """
    own = getattr(config, "options", None)
    return own(given or {}) if own is not None else dataclass_options(config)


def dataclass_options(config: type) -> dict[str, Option]:
    """The options of a config dataclass: the names in its ``exposed``, or every field that is not hidden."""
    exposed = getattr(config, "exposed", None)
    types = _types(config)
    return {
        field.name: Option(types.get(field.name, Any), _default(field), field.metadata.get("help", ""))
        for field in dataclasses.fields(config)
        if (field.name in exposed if exposed else field.init and field.name not in HIDDEN)
    }


def build(part: Part, given: Mapping[str, Any]) -> Any:
    """Make the config of a registered adapter from plain values, such as those of a YAML file.

    Raises:
        ConfigError: unknown or missing options or values of the wrong type, all of them at once, or a value that the
            method refuses.
    """
    known = options(part.config or part.target, given)
    problems = [
        f"adapter '{part.name}' has no option '{name}'.{near_miss(name, known)} Known: {', '.join(known)}."
        for name in given
        if name not in known
    ]
    problems += [
        f"adapter '{part.name}' needs the option '{name}': {option.description or 'add it'}."
        for name, option in known.items()
        if option.default is dataclasses.MISSING and name not in given
    ]
    values = {}
    for name in given.keys() & known.keys():
        try:
            values[name] = TypeAdapter(known[name].type).validate_python(given[name])
        except ValidationError as error:
            problems.append(f"adapter '{part.name}': {name} = {given[name]!r}: {error.errors()[0]['msg']}.")
    if problems:
        raise ConfigError(sorted(problems))
    try:
        return part.target(**values)
    except UserError as error:
        raise ConfigError([f"adapter '{part.name}': {error}"]) from error
    except (TypeError, ValueError) as error:  # PEFT's own way to refuse a value
        raise ConfigError([f"adapter '{part.name}': {str(error).splitlines()[0]}"]) from error


def _types(config: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(config)
    except NameError:  # an annotation that PEFT imports for type checkers only
        return {}


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
