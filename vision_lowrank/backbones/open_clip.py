"""Contrastive models of open_clip: any architecture of ``open_clip.list_models()``.

Both towers are described where they are transformers: open_clip's own, timm's inside ``visual.trunk``, and Hugging
Face's BERT and T5 kinds inside ``text.transformer``. Vision towers of the ResNet kind have no blocks to adapt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import open_clip
from open_clip.factory import load_checkpoint
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from ..data.transforms import Preprocess
from ..errors import UserError, near_miss
from ..identity import fingerprint
from ..registry import register
from .base import Tower
from .image_states import TokenLayout, check_image_size
from .roles import ImageEncoder, TextEncoder
from .timm import timm_layout, timm_tower
from .trunk import OpenClipTrunk, TimmTrunk, Trunk, is_plain_vit
from .weights import PRETRAINED, RANDOM, check_keys, downloading, is_file, reading

Tokenizer = Callable[[Sequence[str]], Tensor]

PRECISIONS = ("fp32", "bf16", "fp16", "pure_bf16", "pure_fp16")

# Where the blocks of a tower are -> the logical names inside a block, once attention is split.
LAYOUTS: dict[str, dict[str, str]] = {
    "transformer.resblocks": {
        "q": "attn.q_proj",
        "k": "attn.k_proj",
        "v": "attn.v_proj",
        "o": "attn.out_proj",
        "fc1": "mlp.c_fc",
        "fc2": "mlp.c_proj",
    },
    "transformer.encoder.layer": {
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "o": "attention.output.dense",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
    },
    "transformer.block": {
        "q": "layer.0.SelfAttention.q",
        "k": "layer.0.SelfAttention.k",
        "v": "layer.0.SelfAttention.v",
        "o": "layer.0.SelfAttention.o",
    },
}


class OpenClipBackbone(ImageEncoder, TextEncoder):
    """An ``open_clip`` CLIP, CustomTextCLIP or CoCa."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Compute image embeddings, not normalised: (B, 3, H, W) -> (B, embed_dim)."""
        return self.model.encode_image(self.as_input(pixels), normalize=False)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Compute text embeddings, not normalised: (B, L) int -> (B, embed_dim)."""
        return self.model.encode_text(tokens, normalize=False)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Compute final patch tokens: (B, 3, H, W) -> (B, N, width), after the final norm where it acts on tokens."""
        visual = self.model.visual
        pooled_by_attention = getattr(visual, "attn_pool", None) is not None
        maps = visual.forward_intermediates(
            self.as_input(pixels),
            indices=1,
            intermediates_only=True,
            normalize_intermediates="vision" in self.towers and not pooled_by_attention,
        )["image_intermediates"][-1]
        return maps.flatten(2).transpose(1, 2)

    def token_layout(self) -> TokenLayout:
        """Return what the vision tower's tokens are; UserError where its blocks do not all hold the same patches."""
        visual = self.model.visual
        if hasattr(visual, "trunk"):
            return timm_layout(visual.trunk) or super().token_layout()
        if "vision" not in self.towers:
            return super().token_layout()
        return TokenLayout(tuple(visual.grid_size), 1, visual.conv1.out_channels)

    @property
    def trunk(self) -> Trunk:
        """The vision tower in pieces; UserError where it is no plain ViT."""
        visual = self.model.visual
        if type(visual) is VisionTransformer:
            return OpenClipTrunk(visual)
        inner = getattr(visual, "trunk", None)
        return TimmTrunk(inner) if inner is not None and is_plain_vit(inner) else super().trunk

    @property
    def logit_scale(self) -> Tensor:
        """Scalar multiplier of cosine similarities (already exponentiated)."""
        return self.model.logit_scale.exp().reshape(())


@register("backbone", "open_clip", summary="CLIP-like models of open_clip, image and text towers: `open_clip:ViT-B-16`")
def load_open_clip(arch: str, weights: str, image_size: int | None = None, **options: Any) -> OpenClipBackbone:
    """Build the architecture `arch` of ``open_clip.list_models()``.

    Args:
        arch: such as ``ViT-B-16``.
        weights: ``random``; a tag such as ``openai``; ``pretrained`` (``openai`` where it exists, else the
            first tag that open_clip lists); or a local ``.safetensors`` or ``.pt`` file. A tag brings its own
            activation; with a file of OpenAI's weights, name the ``-quickgelu`` architecture.
        image_size: side of the input in pixels, open_clip's ``force_image_size``, to which position embeddings are
            resampled.
        options: further arguments of ``open_clip.create_model``, such as ``force_patch_dropout``. With ``precision:
            bf16`` or ``fp16`` the model is known by its weights in float32: adapters fit both.

    Raises:
        UserError: unknown architecture, tag or option; no such file; something could not be downloaded.
        ArtefactError: the file is damaged or belongs to another architecture.
    """
    arch = arch.replace("/", "-")
    known = open_clip.list_models()
    if arch not in known:
        raise UserError(
            f"unknown open_clip architecture '{arch}'.{near_miss(arch, known)} See open_clip.list_models()."
        )
    tag = None if weights == RANDOM or is_file(weights) else _tag(arch, weights)
    if tag and get_pretrained_cfg(arch, tag).get("quick_gelu"):
        options = {"force_quick_gelu": True, **options}
    given, options = options, {**options, **({} if image_size is None else {"force_image_size": image_size})}
    precision = options.pop("precision", "fp32")
    if precision not in PRECISIONS:
        raise UserError(f"open_clip precision '{precision}': write one of {', '.join(PRECISIONS)}.")
    with _quiet(), downloading(f"open_clip '{arch}'" + (f" with weights '{tag}'" if tag else "")):
        model = _create(arch, tag, options)
    patch_embed = getattr(getattr(model.visual, "trunk", model.visual), "patch_embed", model.visual)
    check_image_size(image_size, max(getattr(patch_embed, "patch_size", (1,))), arch)
    if is_file(weights):
        with reading(weights):
            keys = load_checkpoint(model, weights, strict=False, weights_only=True)
        check_keys(keys.missing_keys, keys.unexpected_keys, weights)
    wide = None
    if precision != "fp32":
        wide = model
        with _quiet():
            model = _create(arch, None, options | {"precision": precision})
        model.load_state_dict(wide.state_dict())
    backbone = wrap_open_clip(
        model,
        name=f"open_clip:{arch}",
        weights=tag or weights,
        embed_dim=open_clip.get_model_config(arch)["embed_dim"],
        preprocess=open_clip.get_model_preprocess_cfg(model),
        tokenizer=_tokenizer(arch, options.get("force_context_length")),
        options=given | ({} if image_size is None else {"image_size": image_size}),
    )
    if wide is not None:
        backbone.fingerprint = fingerprint(wide)
        backbone.hold_identity()
    return backbone


def _create(arch: str, tag: str | None, options: Mapping[str, Any]) -> nn.Module:
    """Build a model with the weights of a tag, or with random ones.

    Raises:
        UserError: open_clip does not accept the options.
    """
    try:
        return open_clip.create_model(arch, pretrained=tag, pretrained_text=False, weights_only=True, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"open_clip '{arch}' does not accept these options: {error}.") from error


def wrap_open_clip(
    model: nn.Module,
    *,
    name: str,
    weights: str | None,
    embed_dim: int,
    preprocess: Mapping[str, Any],
    tokenizer: Tokenizer,
    options: Mapping[str, Any] | None = None,
) -> OpenClipBackbone:
    """Wrap an open_clip model as a backbone; `preprocess` is its ``preprocess_cfg``, other arguments as there."""
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(f"'{name}' expects {height} x {width} pixels: only square inputs are supported.")
    text = "text" if hasattr(model, "text") else ""
    return OpenClipBackbone(
        model,
        name=name,
        weights=weights,
        towers=[*_towers(model, "vision", "visual"), *_towers(model, "text", text)],
        preprocess=Preprocess(
            height,
            preprocess["mean"],
            preprocess["std"],
            interpolation=preprocess["interpolation"],
            resize=preprocess["resize_mode"],
        ),
        embed_dim=embed_dim,
        tokenizer=tokenizer,
        options=options,
    )


def _towers(model: nn.Module, name: str, root: str) -> Iterator[Tower]:
    """Yield the tower at module path `root` of `model`, if it is a transformer of a known layout."""
    trunk = getattr(model.get_submodule(root), "trunk", None)
    if trunk is not None:
        yield from timm_tower(trunk, name, f"model.{root}.trunk")
        return
    for layout, modules in LAYOUTS.items():
        path = f"{root}.{layout}" if root else layout
        try:
            blocks = model.get_submodule(path)
        except AttributeError:
            continue
        yield Tower(name, tuple(f"model.{path}.{index}" for index in range(len(blocks))), modules)
        return


def _tag(arch: str, weights: str) -> str:
    """Return the library tag that `weights` names."""
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if weights == PRETRAINED:
        if not tags:
            raise UserError(
                f"open_clip has no pretrained weights for '{arch}': give a local file or weights='{RANDOM}'."
            )
        return "openai" if "openai" in tags else tags[0]
    if not get_pretrained_cfg(arch, weights):
        raise UserError(
            f"unknown weights '{weights}' for open_clip '{arch}'.{near_miss(weights, tags)} "
            f"Known: {', '.join([RANDOM, PRETRAINED, *tags])}, or a local file."
        )
    return weights


def _tokenizer(arch: str, context_length: int | None) -> Tokenizer:
    """Return the tokenizer of `arch`, built when it is first called: some need files from the network."""
    built: list[Tokenizer] = []

    def tokenize(texts: Sequence[str]) -> Tensor:
        if not built:
            with _quiet(), downloading(f"the tokenizer of open_clip '{arch}'"):
                built.append(open_clip.get_tokenizer(arch, context_length=context_length))
        return built[0](list(texts))

    return tokenize


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence open_clip's log: it warns of random weights, which were asked for, and logs what it then raises."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
