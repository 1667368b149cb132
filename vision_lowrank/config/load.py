"""From YAML files and dotted overrides to a checked :class:`~vision_lowrank.config.schema.RunConfig`.

A file may name others under ``base:``; they are merged first, in order, paths relative to the file. Overrides such as
``engine.steps=200`` come last. A section whose ``type`` changes keeps only the keys that the new type knows too, so
``adapter.type=lora`` on a Block-LoRA recipe drops ``blocks`` and keeps ``r``. All problems are reported at once, each
with the file (or ``override``), the key path, the reason and the nearest valid key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..errors import ConfigError, UserError, near_miss
from .check import Tree, check_settings, validate
from .paths import check_paths
from .schema import RunConfig
from .sections import KINDS, LISTS, known_keys
from .shipped import find_recipe
from .yaml_text import parse_yaml

MOST_FILES = 64  # that one recipe may be made of


class Recipe(NamedTuple):
    """A recipe as it was read, not yet checked.

    Attributes:
        tree: its settings, bases and overrides merged.
        origins: key path -> the file or override that set it.
        source: the file.
    """

    tree: Tree
    origins: dict[str, str]
    source: str


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, merge its bases and the overrides, and check everything.

    Args:
        path: a YAML file, or the name of a shipped recipe (:func:`.shipped.find_recipe`).
        overrides: dotted assignments, such as ``adapter.r=4``; values are YAML.

    Raises:
        ConfigError: every problem found, one line each.
    """
    return validate(*read_recipe(path, overrides))


def check_recipe(path: str | Path, overrides: Sequence[str] = ()) -> None:
    """Say what is wrong with a recipe, and which files that it names are missing, without importing torch.

    What has time to import torch anyway calls :func:`load_config` afterwards, which checks the rest.

    Raises:
        ConfigError: every problem found, one line each.
    """
    recipe = read_recipe(path, overrides)
    check_paths(check_settings(*recipe), recipe.origins, recipe.source)


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, and merge its bases and the overrides.

    Raises:
        ConfigError: a file is missing or no YAML, or an override is malformed.
    """
    origins: dict[str, str] = {}
    path = find_recipe(path)
    tree = apply_overrides(_read(path, origins, (), []), overrides)
    origins |= {override.partition("=")[0].strip(): f"override '{override}'" for override in overrides}
    tree.setdefault("name", path.stem)
    return Recipe(tree, origins, str(path))


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> Tree:
    """Return `tree` with dotted assignments such as ``adapter.r=4`` made in order; a mapping replaces a section.

    Raises:
        ConfigError: an override is not of the form ``key.path=value``.
    """
    for override in overrides:
        path, value = _parse_override(override)
        if isinstance(value, dict):
            tree = _merge(tree, _nested(path, None))
        tree = _merge(tree, _nested(path, value))
    return tree


def to_tree(config: RunConfig) -> Tree:
    """Return the resolved settings as plain nested dicts, ready for YAML or JSON; ``validate`` reads them back."""
    return config.model_dump(mode="json")


def to_yaml(config: RunConfig) -> str:
    """Write the resolved settings as YAML text."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True)


def _read(path: Path, origins: dict[str, str], chain: tuple[Path, ...], read: list[Path]) -> Tree:
    """Read one file with its bases merged below it.

    `origins` learns which file set which key, `read` every file that was read: bases that name bases tenfold grow
    beyond any measure.
    """
    if path.resolve() in chain:
        raise ConfigError([f"{path}: base files form a circle ({' -> '.join(p.name for p in chain)} -> {path.name})"])
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError([f"{path}: no such config file.{near_miss(path.name, siblings)}"])
    read.append(path)
    if len(read) > MOST_FILES:
        raise ConfigError([f"{chain[0]}: is made of more than {MOST_FILES} files: name every base once"])
    try:
        own = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except (ValueError, OSError) as error:  # of which text that is no UTF-8 is one
        raise ConfigError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(own, dict):
        raise ConfigError([f"{path}: a config is a mapping of keys to values, found {type(own).__name__}"])
    tree: Tree = {}
    for base in _bases(path, own.pop("base", None)):
        tree = _merge(tree, _read(path.parent / Path(base).expanduser(), origins, (*chain, path.resolve()), read))
    for key in _leaves(own):
        origins[key] = str(path)
    return _merge(tree, {str(key): value for key, value in own.items()})


def _bases(path: Path, named: Any) -> list[str]:
    """Return the files that a config names under ``base``."""
    bases = named if isinstance(named, list) else [] if named is None else [named]
    for base in bases:
        if not isinstance(base, str) or not base.strip():
            raise ConfigError([f"{path}: base: {base!r:.60} is no file: name one, or a list of them"])
    return bases


def _merge(below: Tree, above: Tree) -> Tree:
    """Merge deeply, `above` wins; lists are replaced; a section of changed type keeps the keys both types know."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if not (isinstance(old, dict) and isinstance(value, dict)):
            merged[key] = value
            continue
        if key in KINDS and key not in LISTS and value.get("type", old.get("type")) != old.get("type"):
            known = _known_keys(key, value["type"])
            old = {name: entry for name, entry in old.items() if name in known}
        merged[key] = _merge(old, value)
    return merged


def _known_keys(name: str, type_name: Any) -> set[str]:
    try:
        return known_keys(name, str(type_name))
    except UserError:  # an unknown type is reported once, by validate
        return set()


def _parse_override(text: str) -> tuple[list[str], Any]:
    """Parse ``a.b=value`` to (["a", "b"], value)."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError([f"override '{text}': write key.path=value, such as engine.steps=200"])
    try:
        return parts, parse_yaml(value)
    except ValueError as error:
        shown = " ".join(text.split())
        shown = shown if len(shown) < 100 else f"{shown[:97]}..."
        raise ConfigError([f"override '{shown}': the value is not valid YAML: {error}"]) from None


def _nested(path: Sequence[str], value: Any) -> Tree:
    for part in reversed(path):
        value = {part: value}
    return value


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
