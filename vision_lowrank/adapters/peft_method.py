"""Any method of PEFT by its own name: ``{type: peft, name: DORA, r: 4}``.

The names are PEFT's own (``LOHA``, ``VERA``, ``OFT``, …, the members of ``peft.PeftType``) and those that people use
for variants of its LoRA: ``DORA``, ``RSLORA``, ``PISSA``, ``OLORA``, ``EVA``, ``KASA``. Options are those of the PEFT
config, under PEFT's names. :func:`vision_lowrank.attach` chooses the target modules.

``PISSA``, ``OLORA`` and ``KASA`` change the frozen weight when they attach: the output starts (nearly) equal to the
base's, but disabling the adapter does not give the base back. ``EVA`` starts at random until
``peft.initialize_lora_eva_weights`` has seen data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from ..config.options import Option, dataclass_options
from ..errors import UserError, near_miss
from ..registry import register

# What people call a method -> the options of PEFT's LoRA that make it.
LORA_VARIANTS: dict[str, dict[str, Any]] = {
    "DORA": {"use_dora": True},
    "RSLORA": {"use_rslora": True},
    "PISSA": {"init_lora_weights": "pissa"},
    "OLORA": {"init_lora_weights": "olora"},
    "EVA": {"init_lora_weights": "eva"},
    "KASA": {"kasa_config": {}},
}

_PROMPTS = "it learns prompt tokens of a language model"
REFUSED = {
    **dict.fromkeys(("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT"), _PROMPTS),
    "CARTRIDGE": "it learns a key-value cache of a language model",
    "ADAPTION_PROMPT": "it is written for the attention of LLaMA",
    "TRAINABLE_TOKENS": "it trains rows of a token embedding",
    "XLORA": "it mixes LoRAs that a language model already has",
    "POLY": "it needs a task id in every forward call",
    "SHADOW": "it needs the decoder of a language model",
}

# Options that PEFT can only guess for the language models it knows.
DEFAULTS: dict[str, dict[str, Any]] = {"IA3": {"feedforward_modules": []}}


# Ways of PEFT's LoRA to start that change the frozen weight.
_ALTERING = ("pissa", "olora", "corda", "lora_ga", "loftq")


class PeftOptions:
    """Schema of ``{type: peft, …}`` for the config loader: the options depend on `name`."""

    @staticmethod
    def options(given: Mapping[str, Any]) -> dict[str, Option]:
        """List the option `name`, and where it is given the options of that method.

        Raises:
            UserError: there is no such method, or it makes no sense for a vision backbone.
        """
        name = Option(str, dataclasses.MISSING, "PEFT's name of the method, such as DORA or LOHA")
        if "name" not in given:
            return {"name": name}
        config, fixed = _resolve(str(given["name"]))
        own = dataclass_options(config)
        return {"name": name, **{key: option for key, option in own.items() if key not in fixed}}


@register("adapter", "peft", summary="any method of PEFT by its name: DORA, LOHA, VERA, OFT, …", config=PeftOptions)
def peft_method(name: str, **options: Any) -> PeftConfig:
    """Build the PEFT config of the method `name`.

    Args:
        name: upper or lower case.
        options: the options of its PEFT config.

    Raises:
        UserError: unknown name or option, a value that PEFT refuses, or a method that makes no sense for a vision
            backbone.
    """
    config, fixed = _resolve(name)
    known = {field.name for field in dataclasses.fields(config) if field.init} - fixed.keys()
    for option in options:
        if option not in known:
            raise UserError(f"PEFT's {name.upper()} has no option '{option}'.{near_miss(option, known)}")
    try:
        return config(**{**DEFAULTS.get(name.upper(), {}), **options, **fixed})
    except (TypeError, ValueError) as error:
        raise UserError(f"PEFT refuses these options of {name.upper()}: {error}") from error


def method_names() -> list[str]:
    """List every name that :func:`peft_method` accepts."""
    own = [kind.value for kind in PeftType if kind in PEFT_TYPE_TO_CONFIG_MAPPING]
    return sorted({*own, *LORA_VARIANTS} - REFUSED.keys())


def changes_base(config: PeftConfig) -> str | None:
    """Return what changed the frozen weight as this config's adapter attached, so that B A alone is not its ΔW."""
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.startswith(_ALTERING):
        return start
    if getattr(config, "kasa_config", None) is not None:
        return "kasa"
    return "osf" if getattr(config, "peft_type", None) == PeftType.OSF else None


def _resolve(name: str) -> tuple[type[PeftConfig], dict[str, Any]]:
    """Return the config class and the fixed options of a method."""
    kind = name.upper()
    if kind in REFUSED:
        raise UserError(f"PEFT's {kind} cannot adapt a vision backbone: {REFUSED[kind]}.")
    if kind not in (known := method_names()):
        raise UserError(f"PEFT has no method '{name}'.{near_miss(name, known)} Known: {', '.join(known)}.")
    return PEFT_TYPE_TO_CONFIG_MAPPING["LORA" if kind in LORA_VARIANTS else kind], LORA_VARIANTS.get(kind, {})
