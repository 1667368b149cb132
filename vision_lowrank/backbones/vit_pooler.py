"""The pooler of the original ViT, and published ViT files that carry one, for timm's VisionTransformer.

ViTs pretrained on ImageNet-21k ("An Image is Worth 16x16 Words", arXiv 2010.11929) have a layer between the class
token and the classifier, which timm's models lack. With z_cls (d,) the class token after the last block::

    h = tanh(W_p LN(z_cls) + b_p)        W_p (d, d), b_p (d,), d (d + 1) parameters

:func:`add_pooler` puts it where the classifier was, as ``head``, so that the model's output is h. Its weights are in
files of two layouts, both read by :func:`timm_names`:

* Hugging Face's ``ViTModel``, such as google/vit-base-patch16-224-in21k: ``pooler.dense``;
* early files of timm: ``pre_logits.fc``. Those that timm publishes today have none.

The configs of Hugging Face give LN an ε of 1e-12, timm's models 1e-6, which was that of the training code: at unit
variance, features differ by less than 1e-6 of their size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..errors import UserError

# Hugging Face's names -> timm's, outside and inside a block; what is not listed is called the same.
OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "pooler.dense": "head.dense",
    "classifier": "head",
}
INSIDE = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
BLOCK, QUERY = "encoder.layer.", "attention.attention.query"


class Pooler(nn.Module):
    """h = tanh(W_p z + b_p): (B, d) -> (B, d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Compute pooled class tokens (B, d)."""
        return self.dense(x).tanh()


def add_pooler(model: nn.Module, name: str) -> None:
    """Give `model`, which is called `name` and has no classifier, a pooler with random weights.

    Raises:
        UserError: it is no VisionTransformer whose output is the class token.
    """
    if type(model) is not VisionTransformer or model.global_pool != "token" or model.cls_token is None:
        raise UserError(
            f"timm '{name}' cannot have a pooler: it belongs to a plain ViT whose output is the class token, such as "
            "'vit_base_patch16_224'; leave `pooler` out."
        )
    model.head = Pooler(model.embed_dim)


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a ViT's tensors to timm's names, the pooler as :func:`add_pooler` places it; other state dicts stay.

    Raises:
        KeyError: a block has a query without key or value.
    """
    state = {name.removeprefix("vit."): tensor for name, tensor in state.items()}
    if "embeddings.cls_token" not in state:
        return {re.sub(r"^pre_logits\.fc\.", "head.dense.", name): tensor for name, tensor in state.items()}
    result = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if name in OUTSIDE:
            result[OUTSIDE[name]] = tensor
        elif not name.startswith(BLOCK):
            result[f"{OUTSIDE.get(module, module)}.{kind}"] = tensor
        else:
            index, _, path = module.removeprefix(BLOCK).partition(".")
            if path == QUERY:
                parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
                result[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts)
            elif path not in (QUERY.replace("query", "key"), QUERY.replace("query", "value")):
                result[f"blocks.{index}.{INSIDE.get(path, path)}.{kind}"] = tensor
    return result
