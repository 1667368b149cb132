"""Vision models of timm: any model of ``timm.list_models()``, without its classifier.

Models with a list of residual blocks (ViT, DeiT, EVA, Swin, …) have a vision tower; others serve as frozen feature
extractors, or are adapted by naming modules to PEFT directly.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import timm
import torch
from timm.layers import DropPath
from timm.models import get_arch_pretrained_cfgs, split_model_name_tag
from torch import Tensor, nn

from ..attention.split import can_split
from ..data.transforms import Preprocess
from ..errors import UserError, near_miss
from ..registry import register
from .base import Tower
from .image_states import TokenLayout, check_image_size
from .options import TimmOptions
from .roles import ImageEncoder
from .trunk import TimmTrunk, Trunk, is_plain_vit
from .vit_pooler import add_pooler, timm_names
from .weights import PRETRAINED, RANDOM, downloading, is_file, load_strict, read_weights, reading


class TimmBackbone(ImageEncoder):
    """A timm model without classifier: `encode_image` gives the pooled features before it."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Compute pooled features: (B, 3, H, W) -> (B, embed_dim)."""
        return self.model(pixels)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Compute final features, no class or register tokens: (B, 3, H, W) -> (B, N, width); a map is flattened."""
        features = self.model.forward_features(pixels)
        if features.ndim == 3:
            return features[:, getattr(self.model, "num_prefix_tokens", 0) :]
        channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)

    def token_layout(self) -> TokenLayout:
        """Return what the vision tower's tokens are; UserError where its blocks do not all hold the same patches."""
        return timm_layout(self.model) or super().token_layout()

    @property
    def trunk(self) -> Trunk:
        """The model in pieces; UserError where it is no plain ViT."""
        return TimmTrunk(self.model) if is_plain_vit(self.model) else super().trunk


@register(
    "backbone", "timm", summary="vision models of timm without classifier: `timm:vit_small_patch14_dinov2`",
    config=TimmOptions,
)  # fmt: skip
def load_timm(
    arch: str,
    weights: str,
    pooler: bool = False,
    image_size: int | None = None,
    drop_path: float = 0.0,
    **options: Any,
) -> TimmBackbone:
    """Build the model `arch` of ``timm.list_models()``.

    Args:
        arch: such as ``vit_small_patch16_224``, with or without a weight tag after a dot.
        weights: ``random``; ``pretrained`` (the tag in `arch`, else timm's default tag); a tag such as
            ``lvd142m``; or a local ``.safetensors`` or ``.pt`` file, with or without a classifier, of timm or of
            Hugging Face's ViT.
        pooler: end with the tanh layer over the class token that Hugging Face's ``ViTModel`` calls ``pooler_output``,
            see :mod:`.vit_pooler`; its weights come from `weights`, a file.
        image_size: side of the input in pixels, timm's ``img_size``, to which position embeddings are resampled.
        drop_path: plain ViTs: stochastic depth (arXiv 1603.09382), the same in all blocks, unlike timm's
            ``drop_path_rate``, which rises from block to block.
        options: further arguments of ``timm.create_model``, such as ``drop_path_rate``.

    Raises:
        UserError: unknown model, tag or option; no such file; the weights could not be downloaded; a pooler for a
            model that has no place for one, or with weights of timm's, which have none.
        ArtefactError: the file is damaged or belongs to another model.
    """
    base, own_tag = split_model_name_tag(arch)
    known = timm.list_models()
    if base not in known:
        raise UserError(f"unknown timm model '{base}'.{near_miss(base, known)} See timm.list_models().")
    if own_tag:
        _check_tag(base, own_tag)
    file = weights if is_file(weights) else None
    download = not file and weights != RANDOM
    if download and weights != PRETRAINED:
        _check_tag(base, weights)
    if download and pooler:
        raise UserError(
            f"timm publishes '{base}' without the pooler's weights: give a file of Hugging Face's ViT, such as "
            "weights='path/to/vit-base-patch16-224-in21k/model.safetensors', or leave `pooler` out."
        )
    size = {} if image_size is None else {"img_size": image_size}
    name = f"{base}.{weights}" if download and weights != PRETRAINED else arch
    with downloading(f"timm '{name}'"):
        try:
            model = timm.create_model(name, pretrained=download, num_classes=0, **options, **size)
        except TypeError as error:
            raise UserError(f"timm '{arch}' does not accept these options: {error}.") from error
    check_image_size(image_size, max(getattr(getattr(model, "patch_embed", None), "patch_size", (1,))), name)
    if pooler:
        add_pooler(model, arch)
    if drop_path:
        _drop_paths(model, arch, drop_path)
    if file:
        state = read_weights(file)
        with reading(file):
            state = _without_classifier(model, timm_names(state))
        load_strict(model, state, file)
    return TimmBackbone(
        model,
        name=f"timm:{arch}",
        weights=weights,
        towers=timm_tower(model, "vision", "model"),
        preprocess=_preprocess(model),
        embed_dim=getattr(model, "head_hidden_size", model.num_features),
        options=options
        | ({"pooler": True} if pooler else {})
        | ({"image_size": image_size} if size else {})
        | ({"drop_path": drop_path} if drop_path else {}),
    )


def timm_tower(model: nn.Module, name: str, path: str) -> Iterator[Tower]:
    """Yield the tower of a timm model at module path `path` of its backbone; nothing where it has no block list.

    Stages (Swin, Hiera, …) are run through in order. ``q k v`` are named where :func:`split_attention` can split the
    block's attention or where it has separate linears already.
    """
    if isinstance(getattr(model, "blocks", None), nn.Module):
        blocks = {f"{path}.blocks.{key}": block for key, block in model.blocks.named_children()}
    else:
        stages = getattr(model, "layers", None) or getattr(model, "stages", None)
        blocks = {
            f"{path}.{'layers' if hasattr(model, 'layers') else 'stages'}.{stage}.blocks.{key}": block
            for stage, module in (stages.named_children() if isinstance(stages, nn.Module) else ())
            for key, block in getattr(module, "blocks", nn.ModuleList()).named_children()
        }
    modules = _modules(next(iter(blocks.values()))) if blocks else {}
    if modules:
        yield Tower(name, tuple(blocks), modules)


def timm_layout(model: nn.Module) -> TokenLayout | None:
    """Return grid, prefix tokens and width of a timm ViT; None without patches or in stages, such as Swin."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is None or not isinstance(getattr(model, "blocks", None), nn.Module):
        return None
    return TokenLayout(tuple(grid), getattr(model, "num_prefix_tokens", 0), model.embed_dim)


def _modules(block: nn.Module) -> dict[str, str]:
    """Return logical names -> module paths inside `block`, as they are once attention is split."""
    attention = getattr(block, "attn", None)
    split = attention is not None and can_split(attention)
    separate = isinstance(getattr(attention, "q_proj", None), nn.Linear)
    modules = {letter: f"attn.{letter}_proj" for letter in "qkv"} if split or separate else {}
    if split:
        modules["o"] = "attn.out_proj"
    elif isinstance(getattr(attention, "proj", None), nn.Linear):
        modules["o"] = "attn.proj"
    for name in ("fc1", "fc2"):
        if isinstance(getattr(getattr(block, "mlp", None), name, None), nn.Linear):
            modules[name] = f"mlp.{name}"
    return modules


def _drop_paths(model: nn.Module, arch: str, share: float) -> None:
    """Let every residual branch be left out for a `share` of the samples in training."""
    if not is_plain_vit(model):
        raise UserError(f"timm '{arch}' is no plain vision transformer: leave backbone.options.drop_path out.")
    for block in model.blocks:
        block.drop_path1, block.drop_path2 = DropPath(share), DropPath(share)


def _check_tag(base: str, tag: str) -> None:
    tags = [split_model_name_tag(name)[1] for name in get_arch_pretrained_cfgs(base)]
    if tag not in tags:
        raise UserError(
            f"unknown weights '{tag}' for timm '{base}'.{near_miss(tag, tags)} "
            f"Known: {', '.join([RANDOM, PRETRAINED, *tags])}, or a local file."
        )


def _without_classifier(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state dict as `model` wants it: cleaned up by the model file's own function, no classifier."""
    clean_up = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if clean_up is not None:
        with torch.no_grad():
            state = clean_up(dict(state), model)
    classifier = model.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    own = model.state_dict()
    return {name: tensor for name, tensor in state.items() if name in own or not name.startswith(prefixes)}


def _preprocess(model: nn.Module) -> Preprocess:
    config = timm.data.resolve_model_data_config(model)
    # An img_size option reaches the patch embedding but not the model's data config.
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or config["input_size"][1:]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(
            f"timm '{type(model).__name__}' expects {height} x {width} pixels: only square inputs are supported."
        )
    return Preprocess(
        height,
        config["mean"],
        config["std"],
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        resize="squash" if config["crop_mode"] == "squash" else "shortest",
    )
