"""A plain vision transformer piece by piece, on pictures of any size: what detectors and trackers build on.

With patches of p x p pixels, g prefix tokens (class, distillation, registers) and width d::

    tokens = trunk.embed(pixels)                 (B, 3, H, W) -> (B, g + h w, d), h = H / p, w = W / p, row by row
    for block in trunk.blocks:                   with the adapters that they carry
        tokens = block(tokens)
    maps = trunk.image_map(pixels)               all of these, the final norm, no prefix tokens: (B, d, h, w)

Positions belong to the grid of the size that the weights were loaded for; on another grid they are resampled as timm
and open_clip do when they load weights for another size (bicubic, antialiased, in float32). Patch dropout takes no
part: it would leave holes in a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .image_states import TokenLayout


class Trunk:
    """The vision transformer of a backbone; it holds the backbone's own modules and no tensors.

    Attributes:
        patch: height and width of a patch in pixels.
        layout: grid, prefix tokens and width at the size that the weights were loaded for.
        blocks: the residual blocks, (B, N, d) -> (B, N, d) each.
        norm: the final norm, on tokens; an identity where the model has none there.
    """

    def __init__(
        self, patch: tuple[int, int], layout: TokenLayout, blocks: Sequence[nn.Module], norm: nn.Module
    ) -> None:
        self.patch, self.layout, self.blocks, self.norm = patch, layout, list(blocks), norm

    def image_map(self, pixels: Tensor) -> Tensor:
        """Compute final patch tokens as a map: (B, 3, H, W) -> (B, d, ⌈H / p⌉, ⌈W / p⌉).

        A picture that patches do not fill is padded with zeros at the right and the bottom.
        """
        height, width = pixels.shape[-2:]
        below, right = -height % self.patch[0], -width % self.patch[1]
        grid = (height + below) // self.patch[0], (width + right) // self.patch[1]
        tokens = self.embed(F.pad(pixels, (0, right, 0, below)))
        for block in self.blocks:
            tokens = block(tokens)
        first = self.layout.prefix
        patches = self.norm(tokens)[:, first : first + grid[0] * grid[1]]
        return patches.transpose(1, 2).unflatten(2, grid)

    def grid_of(self, pixels: Tensor) -> tuple[int, int]:
        """Return rows and columns of the patches of pixels (B, 3, H, W)."""
        return pixels.shape[-2] // self.patch[0], pixels.shape[-1] // self.patch[1]

    def embed(self, pixels: Tensor) -> Tensor:
        """Compute what the first block receives: (B, 3, H, W), multiples of the patch -> (B, g + h w, d)."""
        raise NotImplementedError

    def positions(self, grid: tuple[int, int]) -> Tensor | None:
        """Return position embeddings of a grid (h, w): (1, h w, d), or (1, g + h w, d) where prefix tokens have some;
        None where there are none at all.
        """
        raise NotImplementedError

    @property
    def patch_embedding(self) -> nn.Conv2d:
        """The convolution that makes tokens of patches."""
        raise NotImplementedError

    def patch_tokens(self, pixels: Tensor) -> Tensor:
        """Compute patches alone, no prefix tokens and no positions: (B, 3, H, W), multiples of the patch, ->
        (B, h w, d).
        """
        raise NotImplementedError

    def patch_positions(self) -> Tensor | None:
        """Return the patches' own position embeddings (1, gh gw, d), for the grid of :attr:`layout`; None without."""
        raise NotImplementedError

    def enter(self, tokens: Tensor) -> Tensor:
        """Apply what lies between positions and the first block, dropout or a norm: (B, N, d) -> (B, N, d)."""
        raise NotImplementedError


class TimmTrunk(Trunk):
    """ViT, DeiT, MAE, DINOv2 (registers too) and other models of timm's own VisionTransformer class."""

    def __init__(self, model: Any) -> None:
        """Take `model` apart, which is one that :func:`is_plain_vit`."""
        embedding = model.patch_embed
        layout = TokenLayout(embedding.grid_size, model.num_prefix_tokens, model.embed_dim)
        super().__init__(embedding.patch_size, layout, model.blocks, model.norm)
        self._model = model

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed pixels, see :meth:`Trunk.embed`."""
        model = self._model
        positions = self.positions(self.grid_of(pixels))
        tokens = self.patch_tokens(pixels)
        prefix = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
        before = [token.expand(len(tokens), -1, -1) for token in prefix if token is not None]
        if positions is not None and model.no_embed_class:
            tokens = tokens + positions
        tokens = torch.cat([*before, tokens], dim=1) if before else tokens
        if positions is not None and not model.no_embed_class:
            tokens = tokens + positions
        return self.enter(tokens)

    @property
    def patch_embedding(self) -> nn.Conv2d:
        """The convolution that makes tokens of patches."""
        return self._model.patch_embed.proj

    def patch_tokens(self, pixels: Tensor) -> Tensor:
        """Compute patches alone, see :meth:`Trunk.patch_tokens`."""
        embedding = self._model.patch_embed
        return embedding.norm(embedding.proj(pixels).flatten(2).transpose(1, 2))

    def enter(self, tokens: Tensor) -> Tensor:
        """Apply what comes before the blocks, see :meth:`Trunk.enter`."""
        return self._model.norm_pre(self._model.pos_drop(tokens))

    def patch_positions(self) -> Tensor | None:
        """Return the patches' positions, see :meth:`Trunk.patch_positions`."""
        model = self._model
        own = 0 if model.no_embed_class else self.layout.prefix
        return None if model.pos_embed is None else model.pos_embed[:, own:]

    def positions(self, grid: tuple[int, int]) -> Tensor | None:
        """Return position embeddings, see :meth:`Trunk.positions`."""
        model = self._model
        if model.pos_embed is None:
            return None
        prefix = 0 if model.no_embed_class else self.layout.prefix
        return resample_abs_pos_embed(model.pos_embed, list(grid), list(self.layout.grid), prefix)


class OpenClipTrunk(Trunk):
    """The vision tower of a CLIP that is open_clip's own VisionTransformer."""

    def __init__(self, visual: Any) -> None:
        """Take `visual` apart, an ``open_clip.transformer.VisionTransformer``."""
        layout = TokenLayout(tuple(visual.grid_size), 1, visual.conv1.out_channels)
        # With a pooler of attention, ln_post acts on what that gives, not on tokens.
        norm = visual.ln_post if visual.attn_pool is None else nn.Identity()
        super().__init__(tuple(visual.patch_size), layout, visual.transformer.resblocks, norm)
        self._visual = visual

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed pixels, see :meth:`Trunk.embed`."""
        tokens = self.patch_tokens(pixels)
        first = self._visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        positions = self.positions(self.grid_of(pixels)).to(tokens.dtype)
        return self.enter(torch.cat([first, tokens], dim=1) + positions)

    @property
    def patch_embedding(self) -> nn.Conv2d:
        """The convolution that makes tokens of patches."""
        return self._visual.conv1

    def patch_tokens(self, pixels: Tensor) -> Tensor:
        """Compute patches alone, see :meth:`Trunk.patch_tokens`."""
        return self._visual.conv1(pixels).flatten(2).transpose(1, 2)

    def enter(self, tokens: Tensor) -> Tensor:
        """Apply what comes before the blocks, see :meth:`Trunk.enter`."""
        return self._visual.ln_pre(tokens)

    def patch_positions(self) -> Tensor:
        """Return the patches' positions, see :meth:`Trunk.patch_positions`."""
        return self._visual.positional_embedding[None, 1:]

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Return position embeddings, see :meth:`Trunk.positions`."""
        return resample_abs_pos_embed(self._visual.positional_embedding[None], list(grid), list(self.layout.grid), 1)


def is_plain_vit(model: nn.Module) -> bool:
    """Tell whether :class:`TimmTrunk` can take a timm model apart: not a subclass that does more, nor a hybrid."""
    plain = type(model) in (VisionTransformer, VisionTransformerDistilled)
    return plain and type(model.patch_embed) is PatchEmbed
