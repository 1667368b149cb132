"""What every backbone is: a pretrained model behind one small protocol.

A backbone keeps the library's own module untouched in ``self.model`` and says where its towers, blocks and linears
are, so that adapters, tasks and reports never ask which library a model came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from ..data.transforms import Preprocess
from ..errors import UserError


@dataclass(frozen=True)
class Tower:
    """One transformer inside a backbone.

    Attributes:
        name: ``vision`` or ``text``.
        blocks: module path of every residual block inside the backbone, first to last,
            such as ``model.visual.transformer.resblocks.0``.
        modules: logical name (``q k v o fc1 fc2``) -> module path inside a block once attention is split,
            such as ``{"q": "attn.q_proj", "fc1": "mlp.c_fc"}``.
    """

    name: str
    blocks: tuple[str, ...]
    modules: dict[str, str]


class Backbone(nn.Module):
    """A pretrained model with named towers.

    Attributes:
        name: the name it was loaded by, such as ``open_clip:ViT-B-16``.
        weights: library tag or file of the weights, ``random``, or None for those that ship with the package.
        options: further arguments that it was loaded with.
        model: the library's own module.
        towers: towers by name.
        preprocess: size, mean, std and interpolation the weights expect.
        embed_dim: width of ``encode_image``'s output.
        tokenizer: list of strings -> token ids (N, L) int64; None without a text tower.
        fingerprint: first 16 hex digits of a SHA-256 over the base weights: adapters refuse another base.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        weights: str | None,
        towers: Sequence[Tower],
        preprocess: Preprocess,
        embed_dim: int,
        tokenizer: Callable[[Sequence[str]], Tensor] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.weights, self.options = name, weights, dict(options or {})
        self.model = model
        self.towers = {tower.name: tower for tower in towers}
        self.preprocess = preprocess
        self.embed_dim = embed_dim
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint(model)

    @property
    def spec(self) -> dict[str, Any]:
        """What ``load_backbone(**spec)`` needs to build this backbone again; random weights come out different."""
        return {"name": self.name, "weights": self.weights, **self.options}

    @property
    def transform(self) -> Callable[[Any], Tensor]:
        """PIL image -> (3, H, W) float tensor as the weights expect it, without augmentation."""
        return self.preprocess.evaluation()

    def tower_of(self, path: str) -> str | None:
        """Name of the tower that a parameter of this name belongs to; None where there is no tower.

        Towers own what lies beside their blocks, from where their paths part. What is left, such as the parts of the
        text tower at the top of an ``open_clip.CLIP``, belongs to the last tower.
        """
        paths = {name: tower.blocks[0].split(".") for name, tower in self.towers.items()}
        depth = 1 + sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths.values(), strict=False)))
        owners = [name for name, parts in paths.items() if parts[:depth] == path.split(".")[:depth]]
        return next(iter([*owners, *reversed(paths)]), None)

    def trained_towers(self) -> set[str | None]:
        """Names of the towers of which something requires a gradient."""
        return {self.tower_of(name) for name, parameter in self.named_parameters() if parameter.requires_grad}

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Image embeddings, not normalised: (B, 3, H, W) -> (B, embed_dim)."""
        raise NotImplementedError

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text embeddings, not normalised: (B, L) int -> (B, embed_dim).

        Raises:
            UserError: the backbone has no text tower.
        """
        raise UserError(
            f"backbone '{self.name}' has no text tower: use an open_clip model, or a linear or cosine head."
        )

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Final patch tokens without prefix tokens: (B, 3, H, W) -> (B, N, width)."""
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> Tensor:
        """``encode_image``."""
        return self.encode_image(pixels)

    @property
    def logit_scale(self) -> Tensor:
        """Scalar multiplier of cosine similarities (already exponentiated)."""
        raise UserError(f"backbone '{self.name}' has no logit scale: it has no text tower.")


def fingerprint(module: nn.Module) -> str:
    """Identity of a module's weights: SHA-256 over (name, dtype, shape, bytes), first 16 hex digits.

    Splitting attention renames tensors: take the fingerprint of the library's own layout, before any change.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
