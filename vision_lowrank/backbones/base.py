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
from .image_states import TokenLayout, check_tiles, join_tiles, states_after, valid_places


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

    def token_layout(self) -> TokenLayout:
        """What the tokens of the vision tower are.

        Raises:
            UserError: the backbone has no vision tower whose blocks all hold the same patch tokens.
        """
        raise UserError(
            f"backbone '{self.name}' has no vision tower whose blocks all hold the same patch tokens, so it has no "
            "states to read: use a vision transformer, such as 'tiny-clip' or 'timm:vit_small_patch16_224'."
        )

    @property
    def state_layers(self) -> int:
        """L: number of layers that :meth:`image_states` can be asked for beside layer 0."""
        self.token_layout()
        return len(self.towers["vision"].blocks)

    @property
    def state_width(self) -> int:
        """d: channels of every state."""
        return self.token_layout().width

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens of one tile of ``preprocess.size`` pixels a side."""
        return self.token_layout().grid

    def image_states(self, tiles: Tensor, counts: Sequence[int], layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """States of the image tokens after some layers; blocks above the highest of them do not run.

        Args:
            tiles: (M, 3, S, S) with S = ``preprocess.size``: the tiles of all pictures, one picture after another.
            counts: number of tiles of each of the B pictures, with sum M.
            layers: 0 for the embedded patches, l for the output of block l before any final norm, up to
                ``state_layers``.

        Returns:
            One tensor (B, N, d) per entry of `layers`, N = max(counts) · tokens of a tile, tile by tile and row by row,
            without class token, zeros behind shorter pictures; and a bool tensor (B, N), False at those zeros.

        Raises:
            UserError: the backbone has no such tower, or an argument is out of range.
        """
        layout = self.token_layout()
        check_tiles(tiles, counts, self.preprocess.size)
        blocks = [self.get_submodule(path) for path in self.towers["vision"].blocks]
        tokens = slice(layout.prefix, layout.prefix + layout.grid[0] * layout.grid[1])
        states = states_after(blocks, layers, lambda: self.encode_image(tiles))
        valid = valid_places(counts, layout.grid[0] * layout.grid[1], tiles.device)
        return [join_tiles(state[:, tokens], counts) for state in states], valid

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
