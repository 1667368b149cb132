"""Typed configuration: the schema, loading with bases and overrides, and the record of a run."""

from .check import check_settings, validate
from .load import Recipe, apply_overrides, check_recipe, load_config, read_recipe, to_tree, to_yaml
from .paths import check_paths
from .record import environment
from .schema import BackboneConfig, EngineConfig, RunConfig, Section

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
