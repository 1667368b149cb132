"""LoRAT's published files as trackers: both forms, by their key names (arXiv 2403.05231).

=====================================================  =====================================================
a file of 2024 holds what was trained                   one since mid-2025 holds the whole model, and also
=====================================================  =====================================================
``blocks.i.attn.qkv.{q,k,v}.lora.{A,B}``                 ``blocks.i.attn.qkv.{q,k,v}.linear.{weight,bias}``
``blocks.i.attn.proj.lora.{A,B}``                        ``blocks.i.attn.proj.linear.{weight,bias}``
``blocks.i.mlp.{fc1,fc2}.lora.{A,B}`` (giant: w12, w3)    ``blocks.i.mlp.{fc1,fc2}.linear.{weight,bias}``
``token_type_embed``                                     ``pos_embed``, resampled to the search grid already
``head.{cls,reg}_mlp.layers.{0,1,2}.{weight,bias}``       ``patch_embed.proj.*``, ``norm.*``, ``norm1``, ``ls1``, …
``lora_alpha``, ``use_rslora``; absent: scale 1           or merged linears, ``blocks.i.attn.qkv.weight``, no LoRA
=====================================================  =====================================================

The first needs the base's own weights beside it, DINOv2's. Files called ``.bin`` are safetensors too. timm's names
differ for the giant only: ``w12`` is ``fc1`` and ``w3`` is ``fc2``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...adapters.lora import LoraConfig
from ...attachment.attach import attach
from ...backbones.load import load_backbone
from ...backbones.roles import ImageEncoder
from ...backbones.weights import RANDOM
from ...errors import ArtefactError, UserError
from .cropping import Cropping
from .model import TrackingModel
from .tokens import search_positions

# Width -> the backbone that LoRAT was trained on.
BACKBONES = {
    192: "timm:deit_tiny_patch16_224",
    384: "timm:vit_small_patch14_dinov2",
    768: "timm:vit_base_patch14_dinov2",
    1024: "timm:vit_large_patch14_dinov2",
    1536: "timm:vit_giant_patch14_dinov2",
}
# Search size -> template size and area factor of the search crop.
VARIANTS = {224: (112, 4.0), 378: (196, 5.0)}
LINEARS = ("q", "k", "v", "o", "fc1", "fc2")
_TIMM = (("mlp.w12.", "mlp.fc1."), ("mlp.w3.", "mlp.fc2."))
_SPLIT = {f"attn.qkv.{letter}": f"attn.{letter}_proj" for letter in "qkv"} | {"attn.proj": "attn.out_proj"}
_OTHER = "take the backbone it was made for."


def load_published(
    path: str | Path,
    search_size: int,
    backbone: str | None = None,
    weights: str = "pretrained",
    cropping: Cropping | None = None,
    **options: object,
) -> TrackingModel:
    """Load a published LoRAT file of either form.

    Args:
        path: the file, safetensors by content.
        search_size: 224 or 378: files do not say.
        backbone: the base's name; None = DINOv2 of the file's width.
        weights: of the base, for a file that does not hold them.
        cropping: sizes and factors of crops; None = those that LoRAT has for `search_size`.
        options: further arguments of ``load_backbone``.

    Raises:
        UserError: the file does not exist, the size is not one of LoRAT's, or the base cannot be loaded.
        ArtefactError: the file is damaged, lacks tensors, or is of another width or depth.
    """
    state = read_published(path)
    width = state["token_type_embed"].shape[-1]
    if cropping is None:
        if search_size not in VARIANTS:
            raise UserError(f"search size {search_size}: LoRAT has {' and '.join(map(str, VARIANTS))}.")
        template, factor = VARIANTS[search_size]
        cropping = Cropping(search_size, template, factor, 2.0)
    if backbone is None and width not in BACKBONES:
        raise ArtefactError(f"'{path}': is {width} wide, as no published LoRAT is: name its backbone.")
    whole = "patch_embed.proj.weight" in state
    base = load_backbone(backbone or BACKBONES[width], RANDOM if whole else weights, **options)
    if base.trunk.layout.width != width:
        raise ArtefactError(
            f"'{path}': is {width} wide and '{base.name}' {base.trunk.layout.width}: take the backbone it was made for."
        )
    if whole:
        _fill_base(base, state, path)
    rank = next((tensor.shape[0] for name, tensor in state.items() if name.endswith("lora.A")), None)
    model: nn.Module = base if rank is None else _with_lora(base, state, rank, path)
    tracker = TrackingModel(model, cropping)
    _fill_parts(tracker, state, path)
    if whole:
        tracker.trained_base = set(base.state_dict()) if rank is None else set()
    return tracker.eval().requires_grad_(False)


def read_published(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file under timm's names of modules.

    Raises:
        UserError: it does not exist.
        ArtefactError: it is damaged, or no LoRAT.
    """
    if not Path(path).is_file():
        raise UserError(f"'{path}' does not exist: give a file of LoRAT's, such as base_224.bin.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"'{path}' is damaged or no safetensors file ({error}): fetch it again.") from None
    for old, new in _TIMM:
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    lacking = [name for name in ("token_type_embed", "head.cls_mlp.layers.0.weight") if name not in state]
    if lacking:
        raise ArtefactError(f"'{path}' has no '{lacking[0]}': it is no LoRAT, or only a part of one.")
    return state


def _fill_base(base: ImageEncoder, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Put the whole model's base weights into a backbone whose attention is not split; positions stay its own."""
    found = {name.replace(".linear.", "."): tensor for name, tensor in state.items() if ".lora." not in name}
    for name in [name for name in found if ".attn.qkv.q." in name]:
        parts = [found.pop(name.replace(".qkv.q.", f".qkv.{letter}."), None) for letter in "qkv"]
        if any(part is None for part in parts):
            raise ArtefactError(f"'{path}' lacks a part of '{name}': q, k and v belong together.")
        found[name.replace(".qkv.q.", ".qkv.")] = torch.cat([part for part in parts if part is not None])
    own = base.model.state_dict()
    wanted = {name for name in own if name.startswith(("blocks.", "patch_embed.", "norm."))}
    lacking = sorted(wanted - found.keys())
    odd = [name for name in wanted & found.keys() if own[name].shape != found[name].shape]
    if lacking or odd:
        reason = f"no '{lacking[0]}'" if lacking else f"'{odd[0]}' has another shape"
        raise ArtefactError(f"'{path}' does not fit '{base.name}': {reason}: {_OTHER}")
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(found[name])
    base.take_identity()


def _with_lora(base: ImageEncoder, state: Mapping[str, Tensor], rank: int, path: str | Path) -> nn.Module:
    """Attach LoRA and fill it; the files' two scalars decide its scale."""
    rslora = bool(state.get("use_rslora", torch.tensor(False)).item())
    alpha = float(state["lora_alpha"]) if "lora_alpha" in state else math.sqrt(rank) if rslora else float(rank)
    config = LoraConfig(r=rank, alpha=alpha, scaling="rslora" if rslora else "lora")
    model = attach(base, config, ("vision",), "all", LINEARS)
    given = {name: tensor for name, tensor in state.items() if ".lora." in name}
    layers = dict(base.model.named_modules())
    filled = 0
    with torch.no_grad():
        for name, tensor in given.items():
            module, _, letter = name.partition(".lora.")
            place = next((module.replace(old, new) for old, new in _SPLIT.items() if module.endswith(old)), module)
            layer = layers.get(place)
            factor = getattr(layer, f"lora_{letter}", None)
            if factor is None or factor["default"].weight.shape != tensor.shape:
                raise ArtefactError(
                    f"'{path}': '{name}' does not fit '{base.name}': take the backbone it was made for."
                )
            factor["default"].weight.copy_(tensor)
            filled += 1
    expected = sum(hasattr(layer, "lora_A") for layer in layers.values()) * 2
    if filled != expected:
        raise ArtefactError(f"'{path}': has {filled} LoRA factors and '{base.name}' takes {expected}: it lacks blocks.")
    return model


def _fill_parts(tracker: TrackingModel, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Fill positions, token types and head."""
    parts = {name: tensor for name, tensor in state.items() if name.startswith("head.")}
    parts["embedding.types"] = state["token_type_embed"].reshape(3, -1)
    parts["embedding.positions"] = state.get("pos_embed", search_positions(tracker.trunk, tracker.embedding.search))
    own = tracker.parts.state_dict()
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in (own, parts)]
    odd = sorted(name for name in own.keys() | parts.keys() if shapes[0].get(name) != shapes[1].get(name))
    if odd:
        raise ArtefactError(
            f"'{path}': '{odd[0]}' does not fit a search crop of {tracker.cropping.search} pixels on "
            f"'{tracker.backbone.name}': check size and backbone."
        )
    tracker.parts.load_state_dict(parts)
