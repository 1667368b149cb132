"""tiny-clip: an ordinary ``open_clip.CLIP`` of 3 million parameters that ships with the package.

Architecture and input are in ``data/tiny_clip/config.json`` (the layout of ``open_clip_config.json``), the weights in
``model.safetensors`` beside it (fp16 on disk), the merges of its tokenizer in ``bpe.txt.gz``, which
``build_vocabulary.py`` makes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import open_clip
from open_clip.model import resize_pos_embed

from ..errors import UserError
from ..paths import shipped
from ..registry import register
from .image_states import check_image_size
from .open_clip import OpenClipBackbone, wrap_open_clip
from .weights import RANDOM, load_strict, read_weights

FOLDER = shipped("data") / "tiny_clip"


@register(
    "backbone", "tiny-clip", summary="the shipped CLIP of 3 M parameters at 48 px, pretrained on Noto and Twemoji"
)
def load_tiny_clip(arch: str = "", weights: str | None = None, image_size: int | None = None) -> OpenClipBackbone:
    """Load the shipped model.

    Args:
        arch: nothing: there is only one.
        weights: None for the shipped weights, ``random``, or a local file of the same architecture.
        image_size: side of the input in pixels, a multiple of 8; None for 48. The position embeddings of the patches
            are resampled to the other grid as open_clip does (bicubic, with antialiasing).

    Raises:
        UserError: an architecture was named, the file does not exist, or the size is no multiple of 8.
        ArtefactError: the file is damaged or belongs to another architecture.
    """
    if arch:
        raise UserError(f"'tiny-clip:{arch}': there is only one, named 'tiny-clip'.")
    return build_tiny_clip(json.loads((FOLDER / "config.json").read_text(encoding="utf-8")), weights, image_size)


def build_tiny_clip(
    config: Mapping[str, Any], weights: str | None = RANDOM, image_size: int | None = None
) -> OpenClipBackbone:
    """Build a CLIP with the shipped vocabulary from ``{"model_cfg": …, "preprocess_cfg": …}``.

    Random weights are drawn from torch's global generator. `weights` and `image_size` are as in
    :func:`load_tiny_clip`.
    """
    if image_size is not None:
        check_image_size(image_size, config["model_cfg"]["vision_cfg"]["patch_size"], "tiny-clip")
        config = copy.deepcopy(dict(config))
        config["model_cfg"]["vision_cfg"]["image_size"] = config["preprocess_cfg"]["size"] = image_size
    model = open_clip.CLIP(**config["model_cfg"])
    if weights != RANDOM:
        path = weights or FOLDER / "model.safetensors"
        state = read_weights(path)
        if image_size is not None:
            state = {name: tensor.float() for name, tensor in state.items()}  # torch cannot resample fp16
            resize_pos_embed(state, model)
        load_strict(model, state, path)
    text = config["model_cfg"]["text_cfg"]
    return wrap_open_clip(
        model,
        name="tiny-clip",
        weights=weights,
        embed_dim=config["model_cfg"]["embed_dim"],
        preprocess=config["preprocess_cfg"],
        tokenizer=open_clip.SimpleTokenizer(str(FOLDER / "bpe.txt.gz"), context_length=text["context_length"]),
        options={} if image_size is None else {"image_size": image_size},
    )
