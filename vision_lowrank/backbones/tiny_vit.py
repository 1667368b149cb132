"""tiny-vit: an ordinary timm ``VisionTransformer`` of 2 million parameters for photographs that ships with the package.

``data/tiny_vit`` is a checkpoint folder of timm's: ``config.json`` (architecture, its arguments and its input) and
``model.safetensors`` (fp16 on disk), which ``timm.create_model("local-dir:data/tiny_vit")`` reads too. How it was
pretrained, :mod:`vision_lowrank.tasks.pretraining.regions` says.
"""

from __future__ import annotations

import json

import timm

from ..data.transforms import Preprocess
from ..errors import UserError
from ..paths import shipped
from ..registry import register
from .image_states import check_image_size
from .timm import TimmBackbone, timm_tower
from .weights import RANDOM, load_strict, read_weights

FOLDER = shipped("data") / "tiny_vit"


@register("backbone", "tiny-vit", summary="the shipped ViT of 2 M parameters at 96 px, pretrained on photographs")
def load_tiny_vit(arch: str = "", weights: str | None = None, image_size: int | None = None) -> TimmBackbone:
    """Load the shipped model.

    Args:
        arch: nothing: there is only one.
        weights: None for the shipped weights, ``random``, or a local file of the same architecture.
        image_size: side of the input in pixels, a multiple of 8; None for 96. Position embeddings are resampled to the
            other grid as timm does.

    Raises:
        UserError: an architecture was named, the file does not exist, or the size is no multiple of 8.
        ArtefactError: the file is damaged or belongs to another architecture.
    """
    if arch:
        raise UserError(f"'tiny-vit:{arch}': there is only one, named 'tiny-vit'.")
    about = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    options, given = about["model_args"], about["pretrained_cfg"]
    check_image_size(image_size, options["patch_size"], "tiny-vit")
    model = timm.create_model(about["architecture"], num_classes=0, **options)
    if weights != RANDOM:
        path = weights or FOLDER / "model.safetensors"
        load_strict(model, {name: tensor.float() for name, tensor in read_weights(path).items()}, path)
    if image_size is not None:
        model.set_input_size(image_size)
    return TimmBackbone(
        model,
        name="tiny-vit",
        weights=weights,
        towers=timm_tower(model, "vision", "model"),
        preprocess=Preprocess(image_size or options["img_size"], given["mean"], given["std"], given["interpolation"]),
        embed_dim=model.num_features,
        options={} if image_size is None else {"image_size": image_size},
    )
