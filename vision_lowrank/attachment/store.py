"""``save`` and ``load``: an adapter as a folder that any PEFT can read, and that refuses whatever does not fit.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT writes them, ``README.md`` for people,
and ``vision_lowrank.json``: the backbone and the fingerprint of its weights, where the adapter sits, the SHA-256 of
the tensors, and the model's outputs on a fixed probe. ``load`` is strict: every tensor present, none left over, every
shape right, the same base, the same outputs.

Saving writes a new folder beside the old one, flushes it to the disk and swaps the names: a crash never leaves a
half-written folder, and what was saved before stays until the new one is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..attention.split import split_attention
from ..backbones.adapted import backbone_of
from ..backbones.base import Backbone
from ..errors import ArtefactError, UserError, near_miss
from ..files import replaced
from ..modes import preserved
from ..registry import registry
from ..version import __version__
from .attach import Attachment, detach, inject

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
RECORD, CARD = "vision_lowrank.json", "README.md"
FORMAT = 1
# Relative difference of the probe outputs that other hardware and kernels may cause.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def save(model: PeftModel, folder: str | os.PathLike, adapter_name: str | None = None) -> Path:
    """Save one adapter.

    Args:
        model: what :func:`vision_lowrank.attach` returned.
        folder: created, or replaced where it already holds an adapter; other files in it are kept.
        adapter_name: None for the active adapter.

    Returns:
        The folder.

    Raises:
        UserError: `model` was not made by attach, has no such adapter, or `folder` holds something else.
    """
    folder = Path(folder)
    name = model.active_adapters[0] if adapter_name is None else adapter_name
    if name not in getattr(model, "attachments", {}):
        raise UserError(
            f"save needs an adapter from attach, and there is no '{name}': use save_pretrained for other models."
        )
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in adapter_state(model, name).items()}
    record = {
        "format": FORMAT,
        "attachment": asdict(model.attachments[name]),
        "sha256": checksum(state),
        "probe": probe(model, name),
        "versions": {"vision_lowrank": __version__, "peft": peft.__version__, "torch": torch.__version__},
    }
    with replaced(folder, CONFIG) as new:
        save_file(state, new / TENSORS, metadata={"format": "pt"})
        write_config(model.peft_config[name], new)
        (new / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (new / CARD).write_text(card(model, name, state), encoding="utf-8")
    return folder


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
    folder = Path(folder)
    record = _read_json(folder, RECORD)
    attachment = _attachment(record, folder)
    base = backbone_of(backbone)
    _check_base(attachment, base, folder)
    config = read_config(folder)
    state = read_tensors(folder / TENSORS)
    if checksum(state) != record.get("sha256"):
        raise ArtefactError(f"'{folder / TENSORS}' is not what was saved: its checksum differs; get a fresh copy.")
    config.inference_mode = not trainable
    split_attention(base)
    model = inject(backbone, config, adapter_name)
    try:
        _put(model, state, adapter_name, folder)
        _check_outputs(record.get("probe", {}), probe(model, adapter_name), model, folder)
    except Exception:
        detach(model, adapter_name)
        raise
    model.attachments[adapter_name] = attachment
    return model if trainable else model.eval()


def adapter_state(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """The tensors of one adapter under the names that PEFT gives them in a file; one that layers share, such as
    RandLoRA's bases, under its first name only, which is enough to load it into all of them.
    """
    state = peft.get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    places = {(tensor.data_ptr() or name, tensor.shape): name for name, tensor in reversed(state.items())}
    return {name: state[name] for name in reversed(places.values())}


def write_config(config: PeftConfig, folder: Path) -> None:
    """``adapter_config.json``, ready for inference and the same for the same config whatever the order of its sets."""
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    values["inference_mode"] = True
    (folder / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_config(folder: Path) -> PeftConfig:
    """The config of an adapter folder.

    Raises:
        ArtefactError: missing, damaged, or of a method that is not known here.
    """
    values = _read_json(folder, CONFIG)
    kind = values.get("peft_type")
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        _import_method(str(kind))
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = [getattr(key, "value", key) for key in PEFT_TYPE_TO_CONFIG_MAPPING]
        raise ArtefactError(f"'{folder / CONFIG}' names an unknown method '{kind}'.{near_miss(str(kind), known)}")
    try:
        return PEFT_TYPE_TO_CONFIG_MAPPING[kind].from_pretrained(str(folder))
    except (TypeError, ValueError, UserError) as error:
        raise ArtefactError(f"'{folder / CONFIG}' is not valid: {str(error).splitlines()[0]}") from error


def _import_method(kind: str) -> None:
    """Let a method of ours join PEFT's table, as it does when its module is imported: ``LOLDU`` is registered as
    ``loldu``. All modules are imported for a type that is no registered name, such as ``OFFSET_LORA``.
    """
    if kind.lower() in {part.name for part in registry.list("adapter")}:
        registry.get("adapter", kind.lower()).load()
    else:
        registry.load("adapter")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ArtefactError: missing or damaged.
    """
    if not path.is_file():
        raise ArtefactError(f"'{path}' is missing: the adapter is incomplete; get a fresh copy.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtefactError(f"'{path}' is damaged: {reason}; get a fresh copy.") from error


def checksum(state: dict[str, Tensor]) -> str:
    """SHA-256 over (name, type, shape, bytes) of all tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def probe(model: PeftModel, adapter_name: str) -> dict[str, list[float]]:
    """The first 16 numbers of every output of the backbone's signature, with one adapter active."""
    with _evaluating(model, adapter_name):
        outputs = model.get_base_model().signature()
    return {name: output[0, :16].double().tolist() for name, output in outputs.items()}


def card(model: PeftModel, adapter_name: str, state: dict[str, Tensor]) -> str:
    """The README of an adapter folder."""
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


def _check_base(attachment: Attachment, base: Any, folder: Path) -> None:
    if not isinstance(base, Backbone):
        raise UserError(f"load needs a backbone from load_backbone, not a {type(base).__name__}.")
    if base.fingerprint != attachment.fingerprint:
        raise ArtefactError(
            f"'{folder}' was trained on {attachment.backbone} (weights {attachment.weights}, fingerprint "
            f"{attachment.fingerprint}), not on {base.name} (weights {base.weights}, fingerprint {base.fingerprint}): "
            "load that backbone."
        )


def _check_outputs(saved: dict[str, list[float]], now: dict[str, list[float]], model: nn.Module, folder: Path) -> None:
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, 1e-2)
    for name, values in saved.items():
        before, after = torch.tensor(values), torch.tensor(now.get(name, []))
        different = before.shape != after.shape or (before - after).norm() > tolerance * before.norm()
        if different or not after.isfinite().all():
            raise ArtefactError(
                f"'{folder}': the {name} embedding of the probe is not what it was at save: "
                "the adapter's base or options differ; save it anew from the trained model."
            )


def _attachment(record: dict[str, Any], folder: Path) -> Attachment:
    if record.get("format") != FORMAT:
        raise ArtefactError(
            f"'{folder / RECORD}' has format {record.get('format')}, not {FORMAT}: use the version that wrote it."
        )
    try:
        fields = record["attachment"]
        for name in ("towers", "modules"):
            fields[name] = tuple(fields[name])
        return Attachment(**fields)
    except (KeyError, TypeError) as error:
        raise ArtefactError(f"'{folder / RECORD}' is damaged ({error}): get a fresh copy.") from error


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        remedy = (
            "load a plain PEFT adapter with peft.PeftModel.from_pretrained" if name == RECORD else "get a fresh copy"
        )
        raise ArtefactError(f"'{path}' is missing: {remedy}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ArtefactError(f"'{path}' is damaged: {str(error).splitlines()[0]}; get a fresh copy.") from error
    if not isinstance(values, dict):
        raise ArtefactError(f"'{path}' is damaged: it is no JSON object; get a fresh copy.")
    return values


@contextmanager
def _evaluating(model: PeftModel, adapter_name: str) -> Iterator[None]:
    """Evaluation mode with one adapter active; everything is put back as it was."""
    active = model.active_adapters[0]
    with preserved(model):
        model.eval()
        if active != adapter_name:
            model.set_adapter(adapter_name)
        try:
            yield
        finally:
            if active != adapter_name:
                model.set_adapter(active)
