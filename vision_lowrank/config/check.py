"""Checking settings: all problems at once, each with where it was set, the reason and the nearest valid key.

:func:`check_settings` needs no torch: it refuses unknown keys and types, missing keys, values of the wrong type and
values beyond their limits. :func:`validate` goes on, where nothing was wrong, to the parts themselves: values and
combinations that only they can judge, and what one section has against another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ..errors import ConfigError, UserError, near_miss
from ..registry import registry
from .adapter import AdapterSection
from .references import resolve_references
from .schema import RunConfig
from .sections import Key, first_model, own_model, typed_sections

Tree = dict[str, Any]


def check_settings(tree: Mapping[str, Any], origins: Mapping[str, str] | None = None, source: str = "config") -> Tree:
    """Return the settings, references resolved, checked as far as that goes without importing torch.

    Args:
        tree: nested dictionaries as read from YAML.
        origins: key path -> where it was set, for messages.
        source: named in messages for keys without an origin.

    Raises:
        ConfigError: every problem found, one line each.
    """
    found = Findings(origins or {}, source)
    settings = _resolved(tree, source)
    for key, kind, content in typed_sections(settings):
        _typed_section(found, first_model, key, kind, content)
    _family_options(found, first_model, settings)
    found.check(RunConfig, settings, ())
    found.stop()
    return settings


def validate(tree: Mapping[str, Any], origins: Mapping[str, str] | None = None, source: str = "config") -> RunConfig:
    """Check a plain tree of settings against the schema and the parts that it names.

    Args:
        tree: nested dictionaries as read from YAML.
        origins: key path -> where it was set, for messages.
        source: named in messages for keys without an origin.

    Raises:
        ConfigError: every problem found, one line each.
    """
    settings = check_settings(tree, origins, source)
    found = Findings(origins or {}, source)
    checked: Tree = {}
    for key, kind, content in typed_sections(settings):
        section = _typed_section(found, own_model, key, kind, content)
        if isinstance(section, AdapterSection) and found.attempt(section.config, key) is None:
            section = None  # the method itself has something against its options
        if len(key) == 1:
            checked[key[0]] = section
        else:
            checked.setdefault(key[0], []).append(section)
    checked |= _family_options(found, own_model, settings)
    config = found.check(RunConfig, settings | checked, ())
    found.stop()
    return config


@dataclass
class Findings:
    """Problems as they are found.

    Attributes:
        origins: key path -> the file or override that set it.
        source: named for keys without an origin.
        problems: one line each.
    """

    origins: Mapping[str, str]
    source: str
    problems: list[str] = field(default_factory=list)

    def add(self, key: Key, reason: object) -> None:
        """Note a problem with the setting at a key path."""
        self.problems.append(f"{self._where('.'.join(key))}: {reason}")

    def check(self, model: type[BaseModel], values: Any, key: Key) -> Any:
        """Check `values` as a `model`; None, and notes, where that fails."""
        try:
            return self.attempt(lambda: model.model_validate(values), key)
        except ValidationError as error:
            for item in error.errors():
                location = (str(part) for part in item["loc"] if not str(part).startswith("function-"))
                self.add((*key, *location), _reason(item, model))
        return None

    def attempt(self, action: Callable[[], Any], key: Key) -> Any:
        """Return what `action` gives; None, and notes, where it raises a UserError."""
        try:
            return action()
        except ConfigError as error:
            for problem in error.problems:
                self.add(key, problem)
        except UserError as error:
            self.add(key, error)
        return None

    def stop(self) -> None:
        """Raise ConfigError where there are problems."""
        if self.problems:
            raise ConfigError(self.problems)

    def _where(self, key: str) -> str:
        """Return ``file: key``, with the file (or override) that set the key or the nearest key above or below it."""
        if not key:  # of no key alone
            return self.source
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            prefix = ".".join(parts[:length])
            for known, origin in self.origins.items():
                if known == prefix or known.startswith(prefix + "."):
                    return f"{origin}: {key}"
        return f"{self.source}: {key}"


def _resolved(tree: Mapping[str, Any], source: str) -> Tree:
    try:
        return {str(key): value for key, value in resolve_references(tree).items()}
    except RecursionError:
        raise ConfigError([f"{source}: it is nested too deep"]) from None
    except ValueError as error:
        raise ConfigError([f"{source}: {' '.join(str(error).split())}"]) from None


def _typed_section(
    found: Findings, model_of: Callable[[str, str], type[BaseModel]], key: Key, kind: str, content: Any
) -> BaseModel | None:
    """Check a section by the model of its ``type``; None where that failed."""
    if not isinstance(content, dict) or "type" not in content:
        names = ", ".join(part.name for part in registry.list(kind)) or "none is registered yet"
        found.add(key, f"needs a `type`, one of: {names}")
        return None
    model = found.attempt(lambda: model_of(kind, str(content["type"])), (*key, "type"))
    return None if model is None else found.check(model, content, key)


def _family_options(found: Findings, model_of: Callable[[str, str], type[BaseModel]], settings: Tree) -> Tree:
    """Check the backbone section's ``options`` by the model of its family and return it; empty where it has none."""
    backbone = settings.get("backbone")
    if not isinstance(backbone, dict) or backbone.get("options") is None:
        return {}
    try:
        model = model_of("backbone", str(backbone.get("name")).partition(":")[0])
    except UserError:
        return {}  # an unknown family is told with the other keys of the section
    options = found.check(model, backbone["options"], ("backbone", "options"))
    return {"backbone": backbone | {"options": options}}


def _reason(item: Any, model: type[BaseModel]) -> str:
    """Put pydantic's message in our words, with the nearest valid key for an unknown one."""
    if item["type"] == "extra_forbidden":
        keys = _model_at(model, item["loc"][:-1]).model_fields
        hint = near_miss(str(item["loc"][-1]), keys)
        return f"unknown key.{hint or ' Known: ' + (', '.join(keys) or 'none') + '.'}"
    if item["type"] == "missing":
        return "required, but not given"
    if item["type"] == "part":  # a registered part is meant: the registry's own words
        return str(item["msg"])
    message = str(item["msg"]).removeprefix("Value error, ")
    shown = repr(item["input"])
    return f"{message[0].lower()}{message[1:]} (got {shown if len(shown) < 60 else shown[:57] + '...'})"


def _model_at(model: type[BaseModel], location: tuple[str | int, ...]) -> type[BaseModel]:
    """Find the section in `model` to which a location of pydantic's leads: keys, positions and members of a union."""
    inside: list[type[BaseModel]] = [model]
    for part in location:
        if part in inside[0].model_fields:
            inside = _models(inside[0].model_fields[str(part)].annotation) or inside
        else:
            inside = [each for each in inside if each.__name__ == part] or inside
    return inside[0]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """List all sections in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in _models(each)]
