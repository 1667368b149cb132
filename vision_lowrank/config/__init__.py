"""Typed configuration: the schema, loading with bases and overrides, and the record of a run."""

from .load import load_config, to_tree, to_yaml, validate
from .record import environment
from .schema import BackboneConfig, EngineConfig, RunConfig, Section

__all__ = [
    "BackboneConfig",
    "EngineConfig",
    "RunConfig",
    "Section",
    "environment",
    "load_config",
    "to_tree",
    "to_yaml",
    "validate",
]
