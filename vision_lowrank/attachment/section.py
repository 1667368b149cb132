"""Attaching what the ``adapter:`` section of a config describes."""

from __future__ import annotations

from typing import Any

from peft import PeftModel

from ..backbones.base import Backbone
from ..config.adapter import AdapterSection
from ..initializers.base import Initializer
from ..initializers.initialize import Losses
from .attach import attach


def attach_section(
    backbone: Backbone,
    section: AdapterSection,
    initializer: Initializer | None = None,
    losses: Losses | None = None,
    adapter_name: str = "default",
) -> PeftModel:
    """Attach what the section describes."""
    layers: Any = section.layers
    config, towers, modules = section.config(), section.towers, section.modules
    return attach(backbone, config, towers, layers, modules, adapter_name, initializer=initializer, losses=losses)
