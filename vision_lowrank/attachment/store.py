"""``save`` and ``load``: an adapter as a folder that any PEFT can read, and that refuses whatever does not fit.

What a folder holds is in :mod:`.folder`. ``load`` is strict: every tensor present, none left over, every shape right,
the same base, the same outputs. For prediction alone :mod:`.factored` loads the same folder without PEFT.

Saving writes a new folder beside the old one, flushes it to the disk and swaps the names: a crash never leaves a
half-written folder, and what was saved before stays until the new one is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from ..adapters.peft_method import changes_base
from ..adapters.tuner import tuner_layers
from ..attention.split import renew_identity, split_attention
from ..backbones.adapted import acting, backbone_of, check_bare, plain_path, random_base, unwrapped
from ..backbones.base import Backbone
from ..errors import ArtefactError, UserError
from ..files import replaced
from ..kernels.linear import Branch
from ..modes import eval_mode, ordinary
from ..version import __version__
from .attach import all_or_nothing, inject
from .factored import PREFIX, pack_factors
from .folder import (
    CARD,
    CONFIG,
    attachment_of,
    check_base,
    check_outputs,
    checksum,
    coarsest_type,
    probe_outputs,
    read_tensors,
)
from .peft_config import read_config, write_config
from .record import BASE, FACTORS, FORMAT, RECORD, TENSORS, read_record


def save(model: PeftModel, folder: str | os.PathLike, adapter_name: str | None = None) -> Path:
    """Save one adapter.

    Args:
        model: what :func:`vision_lowrank.attach` returned, compiled or wrapped for several processes or not.
        folder: created, or replaced where it already holds an adapter; other files in it are kept.
        adapter_name: None for the active adapter.

    Returns:
        The folder. Beside the adapter it holds the base where its weights are random, as nobody can load them again.

    Raises:
        UserError: `model` was not made by attach, has no such adapter, or `folder` holds something else.
    """
    model = unwrapped(model)
    return save_adapter(model, folder, adapter_name, random_base(model))


def save_adapter(
    model: PeftModel,
    folder: str | os.PathLike,
    adapter_name: str | None = None,
    base: Mapping[str, Tensor] | None = None,
) -> Path:
    """Save one adapter, as :func:`save` does, with the tensors of a `base` that has no other place."""
    folder, model = Path(folder).expanduser(), unwrapped(model)
    name = model.active_adapters[0] if adapter_name is None else adapter_name
    if name not in getattr(model, "attachments", {}):
        raise UserError(
            f"save needs an adapter from attach, and there is no '{name}': use save_pretrained for other models."
        )
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in adapter_state(model, name).items()}
    factors, about_factors = _factors(model, name, state)
    record = {
        "format": FORMAT,
        "attachment": asdict(model.attachments[name]),
        "sha256": checksum(state),
        "base": checksum(base) if base else None,
        "factors": about_factors,
        "probe": probe(model, name),
        "dtype": coarsest_type(model),
        "versions": {"vision_lowrank": __version__, "peft": peft.__version__, "torch": torch.__version__},
    }
    with replaced(folder, CONFIG) as new:
        save_file(state, new / TENSORS, metadata={"format": "pt"})
        if base:
            save_file(dict(base), new / BASE)
        if factors:
            save_file(factors, new / FACTORS, metadata={"format": "pt"})
        write_config(model.peft_config[name], new)
        (new / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (new / CARD).write_text(card(model, name, state), encoding="utf-8")
    return folder


@ordinary()
def load(
    folder: str | os.PathLike, backbone: Backbone | PeftModel, adapter_name: str = "default", trainable: bool = False
) -> PeftModel:
    """Load an adapter that :func:`save` wrote, onto the backbone it was trained on.

    Args:
        folder: the folder.
        backbone: the same base weights; changed in place. A model with adapters gets one more.
        adapter_name: name of the adapter in the model.
        trainable: go on training; otherwise it is frozen and the model is in evaluation mode.

    Raises:
        ArtefactError: a file is missing or damaged, the base is another one, a tensor is missing, left over or of
            another shape, or the outputs differ from those at save. The backbone is left without the adapter.
    """
    folder = Path(folder).expanduser()
    record = read_record(folder)
    attachment = attachment_of(record)
    check_bare(backbone)
    base = backbone_of(backbone)
    if base is backbone and isinstance(base, Backbone):
        renew_identity(base)
    check_base(attachment, base, folder)
    state = read_tensors(folder / TENSORS, record["sha256"])
    config = read_config(folder, state)
    config.inference_mode = not trainable
    split_attention(base)
    with all_or_nothing(backbone, config, adapter_name):
        try:
            model = inject(backbone, config, adapter_name)
        except UserError:
            raise
        except Exception as error:  # a config that no method can use fails anywhere inside
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise ArtefactError(
                f"'{folder / CONFIG}' does not fit '{base.name}': {reason}; get a fresh copy."
            ) from error
        _put(model, state, adapter_name, folder)
        check_outputs(record, probe(model, adapter_name), model, folder)
    model.attachments[adapter_name] = attachment
    return model if trainable else model.eval()


def adapter_state(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """Return the tensors of one adapter under the names that PEFT gives them in a file; one that layers share, such as
    RandLoRA's bases, under its first name only, which is enough to load it into all of them.
    """
    state = peft.get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    state = {plain_path(name): tensor for name, tensor in state.items()}
    places = {(tensor.data_ptr() or name, tensor.shape): name for name, tensor in reversed(state.items())}
    return {name: state[name] for name in reversed(places.values())}


def probe(model: PeftModel, adapter_name: str) -> dict[str, list[float]]:
    """Compute :func:`.folder.probe_outputs` with one adapter active."""
    with eval_mode(model), acting(model, [adapter_name]):
        return probe_outputs(backbone_of(model))


def _factors(
    model: PeftModel, adapter_name: str, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return what prediction without PEFT needs: tensors for a file of its own, and what the record says of them.

    No tensors where those of the adapter, `state`, are the factors themselves; nothing at all where a layer computes
    something else than one low-rank update with a scale that all layers have.
    """
    config = model.peft_config[adapter_name]
    trains_more = getattr(config, "modules_to_save", None) or getattr(config, "bias", "none") != "none"
    with torch.no_grad(), eval_mode(model), acting(model, [adapter_name]):
        branches = {
            plain_path(path).removeprefix(PREFIX): _branch(layer)
            for path, layer in tuner_layers(model)
            if adapter_name in layer._get_available_adapters()
        }
    if trains_more or changes_base(config) or None in branches.values():
        return {}, None
    scale, *others = {branch.scale for branch in branches.values()}
    if others:
        return {}, None
    own = pack_factors({path: branch.factors for path, branch in branches.items()})
    is_plain = own.keys() == state.keys()
    about = {"file": TENSORS if is_plain else FACTORS, "sha256": checksum(own), "scale": scale}
    return {} if is_plain else own, about


def _branch(layer: BaseTunerLayer) -> Branch | None:
    """Return what an adapted layer computes, where that is one low-rank update of an ordinary linear."""
    branch = layer.branch() if hasattr(layer, "branch") else None
    return branch if isinstance(layer.get_base_layer(), nn.Linear) else None


def card(model: PeftModel, adapter_name: str, state: dict[str, Tensor]) -> str:
    """Write the text of an adapter folder's README."""
    where, config = model.attachments[adapter_name], model.peft_config[adapter_name]
    method = getattr(config.peft_type, "value", config.peft_type)
    modules = " ".join(where.modules) or "as in adapter_config.json"
    count = sum(tensor.numel() for tensor in state.values())
    loading = ", ".join(
        [
            repr(where.backbone),
            f"weights={where.weights!r}",
            *(f"{key}={value!r}" for key, value in where.options.items()),
        ]
    )
    rank = f" (r = {config.r})" if getattr(config, "r", None) else ""
    return f"""---
library_name: peft
tags: [vision-lowrank, {method.lower()}]
---

# {method} adapter for {where.backbone}

| | |
|---|---|
| Method | {method}{rank} |
| Base | {where.backbone}, weights {where.weights}, fingerprint {where.fingerprint} |
| Where | towers {" ".join(where.towers)}; layers {where.layers}; modules {modules} |
| Parameters in this file | {count:,} |

```python
import vision_lowrank as vl

backbone = vl.load_backbone({loading})
model = vl.load("path/to/this/folder", backbone)
```
"""


def _put(model: PeftModel, state: dict[str, Tensor], adapter_name: str, folder: Path) -> None:
    """Load the tensors; names and shapes must be exactly those that saving this model would write."""
    own = adapter_state(model, adapter_name)
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    for keys, problem in ((missing, "lacks"), (extra, "has unexpected")):
        if keys:
            raise ArtefactError(f"'{folder / TENSORS}' {problem} {len(keys)} tensors, the first is '{keys[0]}'.")
    for key, tensor in own.items():
        if tensor.shape != state[key].shape:
            shapes = f"{tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
            raise ArtefactError(f"'{folder / TENSORS}': '{key}' has the shape {shapes}.")
    peft.set_peft_model_state_dict(model, state, adapter_name=adapter_name)
