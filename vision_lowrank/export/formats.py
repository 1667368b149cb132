"""The files that plain LoRAs are kept in: what each library reads, from the same factors.

A layer's ΔW = s · B A, A (k, in), B (out, k), at module path p:

========= =============================================== ========================================= =================
format    tensors                                         scale                                     read by
========= =============================================== ========================================= =================
peft      ``base_model.model.p.lora_A.weight``, ``lora_B`` alpha = s · k in adapter_config.json      ``PeftModel``
diffusers ``COMPONENT.p.lora_A.weight``, ``lora_B``        multiplied into B, so that it is 1        diffusers
kohya     ``lora_unet_p.lora_down.weight``, ``lora_up``    ``.alpha`` = s · k, the same everywhere   WebUI, ComfyUI, …
========= =============================================== ========================================= =================

The diffusers layout has no place for a scale that every version and every other reader of it knows: without one they
all take 1. In kohya names dots become underscores. A kohya file may hold another alpha for every layer, but diffusers
0.42 silently gives such attention layers the most frequent one; so alpha is that of the first layer everywhere, and a
layer with another s · k has the ratio in its B.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import peft
import torch
from torch import Tensor

from ..adapters.base import Factors
from ..attachment.folder import CARD, CONFIG
from ..attachment.peft_config import write_config
from ..attachment.record import TENSORS
from ..errors import UserError, near_miss
from ..files import replaced
from .tensors import file_in, save_tensors

# The name that diffusers looks for in a folder.
WEIGHTS = "pytorch_lora_weights.safetensors"
# Component of a diffusers pipeline -> how kohya names begin.
COMPONENTS = {
    "unet": "lora_unet",
    "transformer": "lora_transformer",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
}


def write_peft(pairs: Mapping[str, Factors], names: Sequence[str], out: Path, component: str) -> Path:
    """Write tensors, config and a short README into a folder; other ranks or scales than the first's get a pattern.

    Args:
        pairs: module path -> factors.
        names: paths of all modules of the model that will read the file.
        out: the folder.
        component: not used: the file is for one model.
    """
    first = next(iter(pairs.values()))
    config = peft.LoraConfig(
        r=len(first.A), lora_alpha=first.scale * len(first.A), target_modules=_targets(pairs, names)
    )
    for key, pair in pairs.items():
        if len(pair.A) != config.r:
            config.rank_pattern[f"^{re.escape(key)}"] = len(pair.A)
        if pair.scale * len(pair.A) != config.lora_alpha:
            config.alpha_pattern[f"^{re.escape(key)}"] = pair.scale * len(pair.A)
    state = {}
    for key, pair in pairs.items():
        state[f"base_model.model.{key}.lora_A.weight"] = pair.A
        state[f"base_model.model.{key}.lora_B.weight"] = pair.B
    with replaced(out, CONFIG) as new:
        save_tensors(new / TENSORS, state, {})
        write_config(config, new)
        (new / CARD).write_text(
            "---\nlibrary_name: peft\ntags: [lora]\n---\n\nA plain LoRA. Load it with "
            "`peft.PeftModel.from_pretrained(model, folder)` on the model whose linears adapter_config.json names; for "
            "timm and open_clip models whose `q_proj` it names split the attention first: "
            "`vision_lowrank.split_attention(model)`.\n",
            encoding="utf-8",
        )
    return out


def write_diffusers(pairs: Mapping[str, Factors], names: Sequence[str], out: Path, component: str) -> Path:
    """Write one file for ``pipeline.load_lora_weights`` and ``model.load_lora_adapter(…, prefix=component)``.

    Args:
        pairs: module path -> factors.
        names: not used.
        out: a ``.safetensors`` file, or a folder for one of the name that diffusers looks for.
        component: ``unet``, ``transformer``, ``text_encoder`` or ``text_encoder_2``.
    """
    state = {}
    for key, pair in pairs.items():
        state[f"{component}.{key}.lora_A.weight"] = pair.A
        state[f"{component}.{key}.lora_B.weight"] = pair.B.float() * pair.scale
    return save_tensors(file_in(out, WEIGHTS), state, {})


def write_kohya(pairs: Mapping[str, Factors], names: Sequence[str], out: Path, component: str) -> Path:
    """Write one file in the layout of kohya's sd-scripts, with an explicit alpha beside every pair.

    Args:
        pairs: module path -> factors.
        names: not used.
        out: a ``.safetensors`` file, or a folder for one.
        component: as for :func:`write_diffusers`.

    Raises:
        UserError: two layers whose names are the same without dots.
    """
    state: dict[str, Tensor] = {}
    first = next(iter(pairs.values()))
    alpha = first.scale * len(first.A) or 1.0
    for key, pair in pairs.items():
        name = f"{COMPONENTS[component]}_{key.replace('.', '_')}"
        if f"{name}.alpha" in state:
            raise UserError(f"kohya's format calls two layers '{name}', '{key}' among them: use the diffusers format.")
        state[f"{name}.lora_down.weight"] = pair.A
        state[f"{name}.lora_up.weight"] = pair.B.float() * (pair.scale * len(pair.A) / alpha)
        state[f"{name}.alpha"] = torch.tensor(alpha)
    ranks = {len(pair.A) for pair in pairs.values()}
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alpha),
    }
    return save_tensors(file_in(out, WEIGHTS), state, metadata)


Writer = Callable[[Mapping[str, Factors], Sequence[str], Path, str], Path]

WRITERS: dict[str, Writer] = {"peft": write_peft, "diffusers": write_diffusers, "kohya": write_kohya}


def writer(format: str, component: str) -> Writer:
    """Look up what writes `format`.

    Raises:
        UserError: unknown format or component.
    """
    for kind, name, known in (("LoRA format", format, WRITERS), ("component", component, COMPONENTS)):
        if name not in known:
            raise UserError(f"unknown {kind} '{name}'.{near_miss(name, known)} Known: {', '.join(known)}.")
    return WRITERS[format]


def _targets(pairs: Mapping[str, Factors], names: Sequence[str]) -> list[str] | str:
    """Name the exported layers as PEFT's ``target_modules``: a list of names, or a regular expression.

    The expression stands where PEFT, which compares the ends of names, would take others too.
    """
    ambiguous = any(name.endswith(f".{key}") for key in pairs for name in names if name not in pairs)
    return "|".join(re.escape(key) for key in sorted(pairs)) if ambiguous else sorted(pairs)
