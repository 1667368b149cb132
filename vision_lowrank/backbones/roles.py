"""What backbones can do: roles that each implements or not.

=============  ================================================================================
ImageEncoder   pictures -> embeddings, patch tokens, states after a layer; perhaps a :mod:`.trunk`
TextEncoder    texts -> embeddings in the space of the pictures'
LanguageModel  pictures and questions -> answers
=============  ================================================================================

Roles are questions to a backbone, not to a model around it: ``isinstance(backbone_of(model), TextEncoder)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..data.transforms import Preprocess
from ..errors import UserError
from .adapted import adapted_paths
from .base import Backbone
from .image_states import TokenLayout, check_tiles, join_tiles, states_after, valid_places
from .trunk import Trunk

PROBE_TEXTS = ("a photo", "a red apple")
SIGNATURE_TEXT = "a photo of a cat."


class ImageEncoder(Backbone):
    """A backbone that embeds pictures.

    Attributes:
        preprocess: size, mean, std and interpolation the weights expect.
        embed_dim: width of ``encode_image``'s output.
    """

    def __init__(self, model: nn.Module, *, preprocess: Preprocess, embed_dim: int, **facts: Any) -> None:
        """Take `preprocess` and `embed_dim`; `facts` are those of :class:`Backbone` and of further roles."""
        super().__init__(model, **facts)
        self.preprocess = preprocess
        self.embed_dim = embed_dim

    @property
    def transform(self) -> Callable[[Any], Tensor]:
        """PIL image -> (3, H, W) float tensor as the weights expect it, without augmentation."""
        return self.preprocess.evaluation()

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Compute image embeddings, not normalised: (B, 3, H, W) -> (B, embed_dim)."""
        raise NotImplementedError

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Compute final patch tokens without prefix tokens: (B, 3, H, W) -> (B, N, width)."""
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> Tensor:
        """Return ``encode_image(pixels)``."""
        return self.encode_image(pixels)

    @property
    def trunk(self) -> Trunk:
        """The plain vision transformer inside, with the adapters that it carries, for pictures of any size.

        Raises:
            UserError: there is none.
        """
        raise UserError(
            f"backbone '{self.name}' is no plain vision transformer, so it has no trunk: use 'tiny-clip', a CLIP of "
            "open_clip with a ViT, or a ViT, DeiT or DINOv2 of timm, such as 'timm:vit_small_patch16_224'."
        )

    def image_map(self, pixels: Tensor) -> Tensor:
        """Compute final patch tokens as a map, see :meth:`.trunk.Trunk.image_map`: (B, 3, H, W) -> (B, d, H/p, W/p).

        Raises:
            UserError: the backbone has no trunk.
        """
        return self.trunk.image_map(pixels)

    def probe(self) -> dict[str, Tensor]:
        """Compute the embeddings of two random pictures, and what further roles add."""
        return {"image": self.encode_image(self._random_pictures())} | super().probe()

    def signature(self) -> dict[str, Tensor]:
        """Compute the embedding of a picture of one wave, and what further roles add."""
        size = self.preprocess.size
        wave = torch.sin(torch.arange(3 * size * size, dtype=torch.float64) * 0.37).reshape(1, 3, size, size)
        return {"image": self.encode_image(wave.to(_weight(self)))} | super().signature()

    def token_layout(self) -> TokenLayout:
        """Return what the tokens of the vision tower are.

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
        """Compute states of the image tokens after some layers; blocks above the highest of them do not run.

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

    def as_input(self, pixels: Tensor) -> Tensor:
        """Return `pixels` in the type that the first layer multiplies: that of its weight."""
        return pixels.to(_weight(self).dtype)

    def _random_pictures(self) -> Tensor:
        """Draw two pictures of noise, (2, 3, S, S), of the type and on the device of the weights."""
        weight, size = _weight(self), self.preprocess.size
        return torch.randn(2, 3, size, size, device=weight.device, dtype=weight.dtype)


class TextEncoder(Backbone):
    """A backbone that embeds texts where it embeds pictures.

    Attributes:
        tokenizer: list of strings -> token ids (N, L) int64.
    """

    def __init__(self, model: nn.Module, *, tokenizer: Callable[[Sequence[str]], Tensor], **facts: Any) -> None:
        """Take `tokenizer`; `facts` are those of :class:`Backbone` and of further roles."""
        super().__init__(model, **facts)
        self.tokenizer = tokenizer

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Compute text embeddings, not normalised: (B, L) int -> (B, embed_dim)."""
        raise NotImplementedError

    @property
    def logit_scale(self) -> Tensor:
        """Scalar multiplier of cosine similarities (already exponentiated)."""
        raise NotImplementedError

    def probe(self) -> dict[str, Tensor]:
        """Compute the embeddings of two short texts, and what further roles add; no texts if no adapter can matter."""
        return ({"text": self._embedded(PROBE_TEXTS)} if self._texts_matter() else {}) | super().probe()

    def signature(self) -> dict[str, Tensor]:
        """Compute the embedding of one sentence, and what further roles add; none if no adapter can matter to it."""
        return ({"text": self._embedded([SIGNATURE_TEXT])} if self._texts_matter() else {}) | super().signature()

    def _texts_matter(self) -> bool:
        """Tell whether adapters sit elsewhere than in the vision tower, or there are none: else texts are the base's.

        They need a tokenizer, which may have to be downloaded.
        """
        return {self.tower_of(path) for path in adapted_paths(self)} != {"vision"}

    def _embedded(self, texts: Sequence[str]) -> Tensor:
        return self.encode_text(self.tokenizer(list(texts)).to(_weight(self).device))


class LanguageModel(Backbone):
    """A backbone whose language model answers questions about pictures."""

    def generate(
        self, tiles: Tensor, counts: Sequence[int], prompts: Sequence[str], max_new_tokens: int = 256
    ) -> list[str]:
        """Generate greedy answers to one question per picture; tiles (M, 3, S, S) and counts as in ``image_states``."""
        raise NotImplementedError

    def answer_loss(
        self, tiles: Tensor, counts: Sequence[int], prompts: Sequence[str], answers: Sequence[str]
    ) -> Tensor:
        """Compute the mean cross-entropy of the tokens of `answers`, which it should give to `prompts`; a scalar."""
        raise NotImplementedError

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Compute the language model's last token's state: (B, L) int, padded -> (B, width); no partner of pictures."""
        raise NotImplementedError


def _weight(backbone: Backbone) -> Tensor:
    """Return the weight of the first convolution or linear, whose type and device inputs need.

    Norms and positions, which may come before it, are float32 in some models of half precision.
    """
    layers = (module.weight for module in backbone.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    return next(weight for weight in chain(layers, backbone.parameters()) if weight.is_floating_point())
