"""``hf:…``: multimodal LLMs by name, from the Hugging Face hub, a local folder or file, or with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...data.transforms import Preprocess
from ...errors import ArtefactError, UserError, near_miss
from ...registry import register
from ..image_states import check_image_size
from ..options import DTYPES, MultimodalOptions
from ..weights import PRETRAINED, RANDOM, check_keys, downloading, is_file, read_weights, reading
from .backbone import MultimodalBackbone
from .families import FAMILIES, Family
from .sizes import PUBLISHED, SIZES, TINY, Size


@register(
    "backbone", "hf", summary="multimodal LLMs of transformers: `hf:OpenGVLab/InternVL3_5-1B-HF`",
    config=MultimodalOptions,
)  # fmt: skip
def load_multimodal(
    arch: str,
    weights: str,
    image_size: int | None = None,
    dtype: str | None = None,
    gradient_checkpointing: bool = False,
) -> MultimodalBackbone:
    """Build the multimodal LLM `arch`.

    Args:
        arch: a repository of the Hugging Face hub with a model of one of the six families, such as
            ``OpenGVLab/InternVL3_5-1B-HF``; or a tiny model for tests, such as ``tiny-internvl3_5``.
        weights: ``random``, for names in :data:`.sizes.SIZES`; ``pretrained``, the hub's; a local
            folder that ``save_pretrained`` wrote; or a local ``.safetensors`` or ``.pt`` file for those names.
        image_size: side of a tile in pixels; None for what the weights were made for, 448 for Qwen.
        dtype: ``float32``, ``bfloat16`` or ``float16`` for all weights; None for float32.
        gradient_checkpointing: compute the blocks of both towers again in the backward pass of training.

    Raises:
        UserError: an unknown name or type, a size that the tower cannot read, or a failed download.
        ArtefactError: the weights are damaged or belong to another architecture.
    """
    if not arch:
        raise UserError("backbone 'hf' lacks a model, as in 'hf:OpenGVLab/InternVL3_5-1B-HF' or 'hf:tiny-internvl3_5'.")
    arch = next((name for name in SIZES if name.lower() == arch.lower()), arch)
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"unknown dtype '{dtype}'.{near_miss(dtype, DTYPES)} Known: {', '.join(DTYPES)}.")
    kind = getattr(torch, dtype or "float32")
    if weights != RANDOM and (weights == PRETRAINED or Path(weights).is_dir()):
        model, text, native, images, tile = _published(arch, weights, kind)
    else:
        model, text, native, images, tile = _built(arch, weights, kind)
    family = _family(arch, model.config)
    size = _tile_size(family, model.config, image_size, tile, arch)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    options = {"image_size": image_size, "dtype": dtype, "gradient_checkpointing": gradient_checkpointing or None}
    return MultimodalBackbone(
        model.eval(),
        family,
        name=f"hf:{arch}",
        weights=weights,
        text=text,
        native=native,
        preprocess=Preprocess(size, tuple(images.image_mean), tuple(images.image_std), resize="squash"),
        options={name: value for name, value in options.items() if value is not None},
    )


def _family(arch: str, config: Any) -> Family:
    if config.model_type not in FAMILIES:
        raise UserError(
            f"'{arch}' is a {config.model_type}, which is none of the families here: {', '.join(FAMILIES)}."
        )
    return FAMILIES[config.model_type]


def _tile_size(family: Family, config: Any, asked: int | None, tile: int | None, arch: str) -> int:
    """Return the side of a tile: `asked`, that of a tiny model, or the native one."""
    native = tile or family.native(config)
    if asked is None or asked == native:
        return native
    if not family.resizable:
        raise UserError(f"image_size = {asked}: the tower of '{arch}' reads tiles of {native} pixels only.")
    check_image_size(asked, family.patch(config) * family.merge(config), arch)
    return asked


def _published(arch: str, weights: str, dtype: torch.dtype) -> tuple[nn.Module, Any, Any, Any, int | None]:
    """Load model, tokenizer, processor (or None), image processor and tile size from the hub or a local folder."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    if arch in TINY and weights == PRETRAINED:
        raise UserError(f"'hf:{arch}' has no pretrained weights: give a local folder or file, or weights='{RANDOM}'.")
    source = arch if weights == PRETRAINED else weights
    hint = near_miss(arch, PUBLISHED) if weights == PRETRAINED and arch not in PUBLISHED else ""
    with _suggesting(hint), downloading(f"multimodal LLM '{source}'"):
        family = _family(arch, AutoConfig.from_pretrained(source, trust_remote_code=False))  # no question either
        try:
            native = AutoProcessor.from_pretrained(source)
            text, images = native.tokenizer, native.image_processor
        except ImportError:
            native = None
            text, images = AutoTokenizer.from_pretrained(source), AutoImageProcessor.from_pretrained(source)
        model, info = _filled(AutoModelForImageTextToText, source, dtype=dtype)
    _check(info, source)
    _complete(text, native, family)
    return model, text, native, images, TINY[arch].tile if arch in TINY else None


@contextmanager
def _suggesting(hint: str) -> Iterator[None]:
    """Put a near miss behind the text of an error."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}{hint}") from error


def _built(arch: str, weights: str, dtype: torch.dtype) -> tuple[nn.Module, Any, Any, Any, int | None]:
    """Build the same for a name in the table, with random weights or those of a file."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText

    from .tiny import build_config, build_processor, byte_tokenizer, smolvlm_images

    if arch not in SIZES:
        raise UserError(
            f"'{arch}' has no size here to build without a download.{near_miss(arch, SIZES)} "
            f"Use weights='{PRETRAINED}' or one of: {', '.join(SIZES)}."
        )
    if weights != RANDOM and not is_file(weights):
        raise UserError(
            f"unknown weights '{weights}' for 'hf:{arch}': use '{RANDOM}', '{PRETRAINED}', a folder or a file."
        )
    size: Size = SIZES[arch]
    native = _cached_processor(arch) if arch in PUBLISHED else None
    text = native.tokenizer if native is not None else byte_tokenizer(size.family)
    config = build_config(size, text)
    if weights == RANDOM:
        model = AutoModelForImageTextToText.from_config(config).to(dtype)
    else:
        state = read_weights(weights)
        with reading(weights):
            kind = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
            model, info = _filled(kind, None, config=config, state_dict=state, dtype=dtype)
        _check(info, weights)
    if native is None:
        try:
            native = build_processor(size, config, text)
        except ImportError:
            return model, text, None, smolvlm_images(size.tile or size.family.native(config)), size.tile
    return model, text, native, native.image_processor, size.tile


def _filled(kind: Any, source: str | None, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return ``kind.from_pretrained``, which knows older files' names, and what it says about their tensors."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    finally:
        if shown:
            logging.enable_progress_bar()


def _check(info: dict[str, Any], name: str) -> None:
    """Raise ArtefactError unless every tensor of the model was there, with its shape, and nothing else."""
    check_keys(sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), name)
    for tensor, *_ in info["mismatched_keys"]:
        raise ArtefactError(f"'{name}' cannot be loaded: tensor '{tensor}' has another shape than the configuration.")


def _cached_processor(arch: str) -> Any:
    """Load the published processor if it is on this machine already; None if not, or if it needs a missing package."""
    from transformers import AutoProcessor

    try:
        native = AutoProcessor.from_pretrained(arch, local_files_only=True)
    except (OSError, ValueError, ImportError):
        return None
    _complete(native.tokenizer, native, SIZES[arch].family)
    return native


def _complete(text: Any, native: Any, family: Family) -> None:
    """Give a tokenizer the padding and a chat template that some checkpoints leave out."""
    if text.pad_token is None:
        text.pad_token = text.eos_token
    for part in (text, native):
        if part is not None and getattr(part, "chat_template", None) is None:
            part.chat_template = family.template
