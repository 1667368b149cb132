"""From YAML files and dotted overrides to a checked :class:`~vision_lowrank.config.schema.RunConfig`.

A file may name others under ``base:``; they are merged first, in order, paths relative to the file. Overrides such as
``engine.steps=200`` come last. A section whose ``type`` changes keeps only the keys that the new type knows too, so
``adapter.type=lora`` on a Block-LoRA recipe drops ``blocks`` and keeps ``r``. All problems are reported at once, each
with the file (or ``override``), the key path, the reason and the nearest valid key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from ..errors import ConfigError, UserError, near_miss
from ..registry import registry
from .adapter import AdapterSection
from .schema import RunConfig

TYPED_SECTIONS = ("task", "data", "adapter", "initializer", "rule", "regularizer", "selection")
Tree = dict[str, Any]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, merge its bases and the overrides, and check everything.

    Args:
        path: a YAML file.
        overrides: dotted assignments, such as ``adapter.r=4``; values are YAML.

    Raises:
        ConfigError: every problem found, one line each.
    """
    origins: dict[str, str] = {}
    tree = apply_overrides(_read(Path(path), origins, ()), overrides)
    origins |= {override.partition("=")[0].strip(): f"override '{override}'" for override in overrides}
    tree.setdefault("name", Path(path).stem)
    return validate(tree, origins, str(path))


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> Tree:
    """`tree` with dotted assignments such as ``adapter.r=4`` made in order; assigning a mapping replaces a section.

    Raises:
        ConfigError: an override is not of the form ``key.path=value``.
    """
    for override in overrides:
        path, value = _parse_override(override)
        if isinstance(value, dict):
            tree = _merge(tree, _nested(path, None))
        tree = _merge(tree, _nested(path, value))
    return tree


def validate(tree: Mapping[str, Any], origins: Mapping[str, str] | None = None, source: str = "config") -> RunConfig:
    """Check a plain tree of settings against the schema.

    Args:
        tree: nested dictionaries as read from YAML.
        origins: key path -> where it was set, for messages.
        source: named in messages for keys without an origin.

    Raises:
        ConfigError: every problem found, one line each.
    """
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(dict(tree)), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([f"{source}: {str(error).splitlines()[0]}"]) from None
    assert isinstance(resolved, dict)
    problems: list[str] = []
    sections: Tree = {str(key): value for key, value in resolved.items()}
    for name in TYPED_SECTIONS:
        if sections.get(name) is not None:
            sections[name] = _typed_section(name, sections[name], problems, origins or {}, source)
    config = _check(RunConfig, sections, (), problems, origins or {}, source)
    if problems:
        raise ConfigError(problems)
    return config


def to_tree(config: RunConfig) -> Tree:
    """The resolved settings as plain nested dictionaries, ready for YAML or JSON; ``validate`` reads them back."""
    return config.model_dump(mode="json")


def to_yaml(config: RunConfig) -> str:
    """The resolved settings as YAML text."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True)


def _read(path: Path, origins: dict[str, str], chain: tuple[Path, ...]) -> Tree:
    """One file with its bases merged below it; `origins` learns which file set which key."""
    if path.resolve() in chain:
        raise ConfigError([f"{path}: base files form a circle ({' -> '.join(p.name for p in chain)} -> {path.name})"])
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError([f"{path}: no such config file.{near_miss(path.name, siblings)}"])
    try:
        own = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(own, dict):
        raise ConfigError([f"{path}: a config is a mapping of keys to values, found {type(own).__name__}"])
    bases = own.pop("base", [])
    tree: Tree = {}
    for base in [bases] if isinstance(bases, str) else bases:
        tree = _merge(tree, _read(path.parent / str(base), origins, (*chain, path.resolve())))
    for key in _leaves(own):
        origins[key] = str(path)
    return _merge(tree, {str(key): value for key, value in own.items()})


def _merge(below: Tree, above: Tree) -> Tree:
    """Deep merge, `above` wins; lists are replaced; a section whose type changes keeps the keys both types know."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if not (isinstance(old, dict) and isinstance(value, dict)):
            merged[key] = value
            continue
        if key in TYPED_SECTIONS and value.get("type", old.get("type")) != old.get("type"):
            known = _known_keys(key, value["type"])
            old = {name: entry for name, entry in old.items() if name in known}
        merged[key] = _merge(old, value)
    return merged


def _known_keys(kind: str, type_name: str) -> set[str]:
    try:
        model: Any = _section_model(kind, type_name)
        return model.keys(type_name) if kind == "adapter" else set(model.model_fields)
    except UserError:  # an unknown type is reported once, by validate
        return set()


def _parse_override(text: str) -> tuple[list[str], Any]:
    """``a.b=value`` as (["a", "b"], value)."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError([f"override '{text}': write key.path=value, such as engine.steps=200"])
    try:
        return parts, yaml.safe_load(_yaml_float(value))
    except yaml.YAMLError:
        raise ConfigError([f"override '{text}': the value is not valid YAML"]) from None


def _nested(path: Sequence[str], value: Any) -> Tree:
    for part in reversed(path):
        value = {part: value}
    return value


def _yaml_float(value: str) -> str:
    """YAML 1.1 reads ``1e-3`` as text: write it the way it reads as a number."""
    try:
        return repr(float(value)) if "e" in value.lower() else value
    except ValueError:
        return value


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _section_model(kind: str, type_name: str) -> type[BaseModel]:
    """The model that checks a section. Adapters share one, since their options are those of PEFT dataclasses."""
    part = registry.get(kind, type_name)
    if kind == "adapter":
        return AdapterSection
    return part.config or part.target


def _typed_section(
    name: str, section: Any, problems: list[str], origins: Mapping[str, str], source: str
) -> BaseModel | None:
    """Validate a section by the model that the registry holds for its ``type``; None where that failed."""
    if not isinstance(section, dict) or "type" not in section:
        options = ", ".join(part.name for part in registry.list(name))
        problems.append(f"{_where(name, origins, source)}: needs a `type`, one of: {options}")
        return None
    try:
        model = _section_model(name, str(section["type"]))
    except UserError as error:
        problems.append(f"{_where(name + '.type', origins, source)}: {error}")
        return None
    return _check(model, section, (name,), problems, origins, source)


def _check(
    model: type[BaseModel],
    values: Mapping[str, Any],
    path: tuple[str, ...],
    problems: list[str],
    origins: Mapping[str, str],
    source: str,
) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        for item in error.errors():
            location = [*path, *(str(part) for part in item["loc"] if not str(part).startswith("function-"))]
            problems.append(f"{_where('.'.join(location), origins, source)}: {_reason(item, model)}")
    except ConfigError as error:
        problems += [f"{_where('.'.join(path), origins, source)}: {problem}" for problem in error.problems]
    except UserError as error:
        problems.append(f"{_where('.'.join(path), origins, source)}: {error}")
    return None


def _where(key: str, origins: Mapping[str, str], source: str) -> str:
    """``file: key``, with the file (or override) that set the key or the nearest key above or below it."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        for known, origin in origins.items():
            if known == prefix or known.startswith(prefix + "."):
                return f"{origin}: {key}"
    return f"{source}: {key}"


def _reason(item: Mapping[str, Any], model: type[BaseModel]) -> str:
    """pydantic's message in our words, with the nearest valid key for an unknown one."""
    if item["type"] == "extra_forbidden":
        fields: Any = model
        for part in item["loc"][:-1]:
            fields = fields.model_fields[part].annotation
        keys = fields.model_fields
        hint = near_miss(str(item["loc"][-1]), keys)
        return f"unknown key.{hint or ' Known: ' + ', '.join(keys) + '.'}"
    if item["type"] == "missing":
        return "required, but not given"
    message = str(item["msg"]).removeprefix("Value error, ")
    shown = repr(item["input"])
    return f"{message[0].lower()}{message[1:]} (got {shown if len(shown) < 60 else shown[:57] + '...'})"
