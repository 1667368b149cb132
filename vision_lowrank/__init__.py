"""vision_lowrank: adapt pretrained vision models with low-rank methods, checked and exact.

The public names below are loaded on first use, so importing the package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import ArtefactError, ConfigError, DataError, DeadAdapterError, UserError
from .registry import Part, register, registry
from .version import __version__

if TYPE_CHECKING:
    from .adapters.attach import attach
    from .adapters.block_lora import BlockLoraConfig
    from .adapters.comp_lora import CompLoraConfig
    from .adapters.lora import LoraConfig
    from .adapters.merge import merge
    from .adapters.peft_method import peft_method
    from .adapters.store import load, save
    from .backbones.load import load_backbone
    from .export.lora import export_lora
    from .targets.attention import fuse_attention, split_attention
    from .targets.coverage import coverage

# Public name -> the module that defines it.
_LAZY = {
    "BlockLoraConfig": ".adapters.block_lora",
    "CompLoraConfig": ".adapters.comp_lora",
    "LoraConfig": ".adapters.lora",
    "attach": ".adapters.attach",
    "coverage": ".targets.coverage",
    "export_lora": ".export.lora",
    "fuse_attention": ".targets.attention",
    "load": ".adapters.store",
    "load_backbone": ".backbones.load",
    "merge": ".adapters.merge",
    "peft_method": ".adapters.peft_method",
    "save": ".adapters.store",
    "split_attention": ".targets.attention",
}

__all__ = [
    "ArtefactError",
    "BlockLoraConfig",
    "CompLoraConfig",
    "ConfigError",
    "DataError",
    "DeadAdapterError",
    "LoraConfig",
    "Part",
    "UserError",
    "__version__",
    "attach",
    "coverage",
    "export_lora",
    "fuse_attention",
    "load",
    "load_backbone",
    "merge",
    "methods",
    "peft_method",
    "register",
    "save",
    "split_attention",
]


def methods(kind: str | None = None) -> list[Part]:
    """Every registered part, or those of one kind (``adapter``, ``backbone``, ``data``, ``task``).

    Each has ``.name``, ``.kind``, ``.paper`` and ``.summary``.
    """
    return registry.list(kind)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
