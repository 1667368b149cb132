"""Typed configuration: the schema, loading with bases and overrides, and the record of a run.

The names below are loaded on first use: what only marks an option, or writes a record, needs no reader of YAML.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import check_settings, validate
    from .load import Recipe, apply_overrides, check_recipe, load_config, read_recipe, to_tree, to_yaml
    from .paths import check_paths
    from .record import environment
    from .schema import BackboneConfig, EngineConfig, RunConfig, Section

_MODULES = {
    ".check": ("check_settings", "validate"),
    ".load": ("Recipe", "apply_overrides", "check_recipe", "load_config", "read_recipe", "to_tree", "to_yaml"),
    ".paths": ("check_paths",),
    ".record": ("environment",),
    ".schema": ("BackboneConfig", "EngineConfig", "RunConfig", "Section"),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BackboneConfig",
    "EngineConfig",
    "Recipe",
    "RunConfig",
    "Section",
    "apply_overrides",
    "check_paths",
    "check_recipe",
    "check_settings",
    "environment",
    "load_config",
    "read_recipe",
    "to_tree",
    "to_yaml",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name], __name__), name)
