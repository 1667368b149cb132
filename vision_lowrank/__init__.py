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
    from .adapters.block_lora import BlockLoraConfig
    from .adapters.comp_lora import CompLoraConfig
    from .adapters.kasa import KasaConfig
    from .adapters.kv_prefix import KvPrefixConfig
    from .adapters.lamda import LamdaConfig
    from .adapters.lofit import LofitConfig
    from .adapters.loldu import LolduConfig
    from .adapters.lora import LoraConfig
    from .adapters.lora_xs import LoraXsConfig
    from .adapters.mixlora import MixLoraConfig
    from .adapters.peft_method import peft_method
    from .adapters.rand_lora import RandLoraConfig
    from .adapters.slora import SloraConfig
    from .adapters.sora import SoraConfig
    from .adapters.visual_prompt import VisualPromptConfig
    from .analysis.mitigation import reduce_intruders
    from .attachment.accelerate import accelerate_peft
    from .attachment.attach import attach
    from .attachment.merge import merge
    from .attachment.phases import begin_phase, phases
    from .attachment.store import load, save
    from .attention.split import fuse_attention, split_attention
    from .backbones.load import load_backbone
    from .export.lora import export_lora
    from .initializers.lora_ga import LoraGa
    from .initializers.lora_sb import LoraSb
    from .initializers.nystrom import Nystrom
    from .initializers.pissa import Pissa
    from .optim.allora import Allora
    from .optim.ggpo import Ggpo
    from .optim.glad import Glad
    from .optim.lisa import Lisa
    from .optim.lora_pro import LoraPro, create_lora_pro_optimizer
    from .optim.mgpo import Mgpo
    from .regularizers.ba_lora import BaLora
    from .regularizers.contrastive import SupervisedContrastive
    from .selection.diffora import Diffora
    from .selection.flexora import Flexora
    from .targets.coverage import coverage
    from .tasks.saved import AdaptedModel, load_model
    from .trained import TrainedPart, TrainedParts, parameter_groups

# Public name -> the module that defines it.
_LAZY = {
    "AdaptedModel": ".tasks.saved",
    "Allora": ".optim.allora",
    "BaLora": ".regularizers.ba_lora",
    "BlockLoraConfig": ".adapters.block_lora",
    "CompLoraConfig": ".adapters.comp_lora",
    "Diffora": ".selection.diffora",
    "Flexora": ".selection.flexora",
    "Ggpo": ".optim.ggpo",
    "Glad": ".optim.glad",
    "KasaConfig": ".adapters.kasa",
    "KvPrefixConfig": ".adapters.kv_prefix",
    "LamdaConfig": ".adapters.lamda",
    "Lisa": ".optim.lisa",
    "LofitConfig": ".adapters.lofit",
    "LolduConfig": ".adapters.loldu",
    "LoraConfig": ".adapters.lora",
    "LoraGa": ".initializers.lora_ga",
    "LoraPro": ".optim.lora_pro",
    "LoraSb": ".initializers.lora_sb",
    "LoraXsConfig": ".adapters.lora_xs",
    "Mgpo": ".optim.mgpo",
    "MixLoraConfig": ".adapters.mixlora",
    "Nystrom": ".initializers.nystrom",
    "Pissa": ".initializers.pissa",
    "RandLoraConfig": ".adapters.rand_lora",
    "SloraConfig": ".adapters.slora",
    "SoraConfig": ".adapters.sora",
    "SupervisedContrastive": ".regularizers.contrastive",
    "TrainedPart": ".trained",
    "TrainedParts": ".trained",
    "VisualPromptConfig": ".adapters.visual_prompt",
    "accelerate_peft": ".attachment.accelerate",
    "attach": ".attachment.attach",
    "begin_phase": ".attachment.phases",
    "coverage": ".targets.coverage",
    "create_lora_pro_optimizer": ".optim.lora_pro",
    "export_lora": ".export.lora",
    "fuse_attention": ".attention.split",
    "load": ".attachment.store",
    "load_backbone": ".backbones.load",
    "load_model": ".tasks.saved",
    "merge": ".attachment.merge",
    "parameter_groups": ".trained",
    "peft_method": ".adapters.peft_method",
    "phases": ".attachment.phases",
    "reduce_intruders": ".analysis.mitigation",
    "save": ".attachment.store",
    "split_attention": ".attention.split",
}

__all__ = [
    "AdaptedModel",
    "Allora",
    "ArtefactError",
    "BaLora",
    "BlockLoraConfig",
    "CompLoraConfig",
    "ConfigError",
    "DataError",
    "DeadAdapterError",
    "Diffora",
    "Flexora",
    "Ggpo",
    "Glad",
    "KasaConfig",
    "KvPrefixConfig",
    "LamdaConfig",
    "Lisa",
    "LofitConfig",
    "LolduConfig",
    "LoraConfig",
    "LoraGa",
    "LoraPro",
    "LoraSb",
    "LoraXsConfig",
    "Mgpo",
    "MixLoraConfig",
    "Nystrom",
    "Part",
    "Pissa",
    "RandLoraConfig",
    "SloraConfig",
    "SoraConfig",
    "SupervisedContrastive",
    "TrainedPart",
    "TrainedParts",
    "UserError",
    "VisualPromptConfig",
    "__version__",
    "accelerate_peft",
    "attach",
    "begin_phase",
    "coverage",
    "create_lora_pro_optimizer",
    "export_lora",
    "fuse_attention",
    "load",
    "load_backbone",
    "load_model",
    "merge",
    "methods",
    "parameter_groups",
    "peft_method",
    "phases",
    "reduce_intruders",
    "register",
    "save",
    "split_attention",
]


def methods(kind: str | None = None) -> list[Part]:
    """List every registered part, or those of one kind (``adapter``, ``backbone``, ``data``, ``task``, …), importing
    none of this package's.

    Each has ``.name``, ``.kind``, ``.paper`` and ``.summary``.
    """
    return registry.list(kind)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
