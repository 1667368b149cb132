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
    from .adapters.accelerate import accelerate_peft
    from .adapters.attach import attach
    from .adapters.block_lora import BlockLoraConfig
    from .adapters.comp_lora import CompLoraConfig
    from .adapters.kasa import KasaConfig
    from .adapters.lamda import LamdaConfig
    from .adapters.lofit import LofitConfig
    from .adapters.loldu import LolduConfig
    from .adapters.lora import LoraConfig
    from .adapters.lora_xs import LoraXsConfig
    from .adapters.merge import merge
    from .adapters.mixlora import MixLoraConfig
    from .adapters.peft_method import peft_method
    from .adapters.rand_lora import RandLoraConfig
    from .adapters.slora import SloraConfig
    from .adapters.sora import SoraConfig
    from .adapters.store import load, save
    from .backbones.load import load_backbone
    from .export.lora import export_lora
    from .initializers.lora_ga import LoraGa
    from .initializers.lora_sb import LoraSb
    from .initializers.nystrom import Nystrom
    from .initializers.pissa import Pissa
    from .targets.attention import fuse_attention, split_attention
    from .targets.coverage import coverage

# Public name -> the module that defines it.
_LAZY = {
    "BlockLoraConfig": ".adapters.block_lora",
    "CompLoraConfig": ".adapters.comp_lora",
    "KasaConfig": ".adapters.kasa",
    "LamdaConfig": ".adapters.lamda",
    "LofitConfig": ".adapters.lofit",
    "LolduConfig": ".adapters.loldu",
    "LoraConfig": ".adapters.lora",
    "LoraGa": ".initializers.lora_ga",
    "LoraSb": ".initializers.lora_sb",
    "LoraXsConfig": ".adapters.lora_xs",
    "MixLoraConfig": ".adapters.mixlora",
    "Nystrom": ".initializers.nystrom",
    "Pissa": ".initializers.pissa",
    "RandLoraConfig": ".adapters.rand_lora",
    "SloraConfig": ".adapters.slora",
    "SoraConfig": ".adapters.sora",
    "accelerate_peft": ".adapters.accelerate",
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
    "KasaConfig",
    "LamdaConfig",
    "LofitConfig",
    "LolduConfig",
    "LoraConfig",
    "LoraGa",
    "LoraSb",
    "LoraXsConfig",
    "MixLoraConfig",
    "Nystrom",
    "Part",
    "Pissa",
    "RandLoraConfig",
    "SloraConfig",
    "SoraConfig",
    "UserError",
    "__version__",
    "accelerate_peft",
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
