"""ManipShield's decoders: from the states at a picture's tokens to edited or not, cues, boxes and a token map.

Paper: ManipShield, arXiv 2511.14259, which names three decoders; their insides are reconstructed. States H (N, d) of
one layer, the centres p (N, 2) of the tokens' cells in [0, 1] of the picture, tiles or not, and a width w::

    query   M = Linear(LayerNorm(H)) + e(p)                                                      (N, w)
            Q = LayerNorm(two pre-norm Transformer decoder layers of learned queries over M)     (2 + K, w)
            logit = Linear(Q_0)    cues = Linear(Q_1)    tokens = Linear(M)
            box_k = sigmoid(MLP(Q_{k+1})) = (cx, cy, w, h)    objectness_k = Linear(Q_{k+1}),        k = 1 … K
    mlp     three MLPs d -> d/2 -> 1, C and 5K on the mean of H; no token map
    linear  logit = Linear(LayerNorm(mean of H)): detection alone, C = K = 0, the usual baseline

e(p) has w/4 frequencies π ω, ω geometric from 1/2 to 64, each as sine and cosine of either coordinate. With d = 1024
and the defaults there are 2,445,587 and 1,606,719 parameters.

Tokens that are not valid never matter: they are zeroed, and left out of attention and means. The decoders compute in
their own parameters' type, float32 in training, whatever autocast says.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from ...data.boxes import Boxes
from ...errors import UserError

Kind: TypeAlias = Literal["query", "mlp", "linear"]


class Decoded(NamedTuple):
    """What a decoder says of B pictures; C or K is 0 where it has no such head.

    Attributes:
        logit: (B,) of "edited".
        cues: (B, C) logits.
        boxes: (B, K, 4) cx, cy, w, h in [0, 1] of the picture.
        objectness: (B, K) logits.
        tokens: (B, N) logits of the edited share of each token's cell; None where there is no token map. Of no meaning
            where not valid.
        valid: (B, N) bool: the tokens that are there.
    """

    logit: Tensor
    cues: Tensor
    boxes: Tensor
    objectness: Tensor
    tokens: Tensor | None
    valid: Tensor


def make_decoder(
    d: int,
    kind: Kind = "query",
    cues: int = 12,
    boxes: int = 10,
    width: int = 256,
    heads: int = 8,
    dropout: float = 0.1,
) -> QueryDecoder | MlpDecoder | LinearDecoder:
    """Make the decoder of a kind, with random weights.

    Args:
        d: width of the states.
        kind: `query`, `mlp` or `linear`.
        cues: C; of no effect for `linear`.
        boxes: K; of no effect for `linear`.
        width: w of `query`, whose feed-forward parts are four times as wide.
        heads: attention heads of `query`.
        dropout: of `query`.

    Raises:
        UserError: `width` is no multiple of 4 and `heads`.
    """
    if kind == "query":
        return QueryDecoder(d, cues, boxes, width, heads=heads, ffn=4 * width, dropout=dropout)
    return MlpDecoder(d, cues, boxes) if kind == "mlp" else LinearDecoder(d)


class QueryDecoder(nn.Module):
    """Learned queries that attend to all tokens.

    Args:
        d: width of the states.
        cues: C.
        boxes: K.
        width: w, a multiple of 4 and of `heads`.
        layers: Transformer decoder layers.
        heads: attention heads.
        ffn: hidden width of the feed-forward parts.
        dropout: in the decoder layers.

    Raises:
        UserError: `width` is no such multiple.
    """

    def __init__(
        self,
        d: int,
        cues: int = 12,
        boxes: int = 10,
        width: int = 256,
        layers: int = 2,
        heads: int = 8,
        ffn: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % math.lcm(4, heads):
            raise UserError(
                f"decoder: width {width} does not fit 4 position codes and {heads} heads: "
                f"take a multiple of {math.lcm(4, heads)}."
            )
        self.project = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, width))
        self.queries = nn.Parameter(torch.randn(2 + boxes, width))
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, ffn, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.detection = nn.Linear(width, 1)
        self.cues = nn.Linear(width, cues)
        self.boxes = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))
        self.objectness = nn.Linear(width, 1)
        self.tokens = nn.Linear(width, 1)

    def forward(self, states: Tensor, valid: Tensor, centres: Tensor) -> Decoded:
        """Decode B pictures.

        Args:
            states: (B, N, d).
            valid: (B, N) bool, at least one per picture.
            centres: (B, N, 2) x and y.
        """
        with torch.autocast(states.device.type, enabled=False):
            memory = self.project(_clean(states, valid, self.queries.dtype))
            memory = memory + position_code(centres, memory.shape[-1]).to(memory.dtype)
            queries = self.queries.expand(len(states), -1, -1)
            for block in self.blocks:
                queries = block(queries, memory, memory_key_padding_mask=~valid)
            queries = self.norm(queries)
            places = queries[:, 2:]
            return Decoded(
                self.detection(queries[:, 0])[:, 0],
                self.cues(queries[:, 1]),
                self.boxes(places).sigmoid(),
                self.objectness(places)[..., 0],
                self.tokens(memory)[..., 0],
                valid,
            )

    @torch.no_grad()
    def lower(self, objectness: float, tokens: float) -> None:
        """Take a constant from the logits of every box and of every token."""
        self.objectness.bias -= objectness
        self.tokens.bias -= tokens


class MlpDecoder(nn.Module):
    """Three small networks on the mean of the tokens: the minimal reading of "decoders".

    Args:
        d: width of the states.
        cues: C.
        boxes: K.
    """

    def __init__(self, d: int, cues: int = 12, boxes: int = 10) -> None:
        super().__init__()
        self.detection, self.cues, self.boxes = (
            nn.Sequential(nn.Linear(d, d // 2), nn.GELU(), nn.Linear(d // 2, out)) for out in (1, cues, 5 * boxes)
        )

    def forward(self, states: Tensor, valid: Tensor, centres: Tensor) -> Decoded:
        """Decode as :meth:`QueryDecoder.forward` does; `centres` are not looked at."""
        with torch.autocast(states.device.type, enabled=False):
            pooled = _pooled(states, valid, self.detection[0].weight.dtype)
            places = self.boxes(pooled).unflatten(-1, (-1, 5))
            logit, cues = self.detection(pooled)[:, 0], self.cues(pooled)
            return Decoded(logit, cues, places[..., :4].sigmoid(), places[..., 4], None, valid)

    @torch.no_grad()
    def lower(self, objectness: float, tokens: float) -> None:
        """Lower as :meth:`QueryDecoder.lower` does; there is no map."""
        self.boxes[-1].bias.unflatten(0, (-1, 5))[:, 4] -= objectness


class LinearDecoder(nn.Module):
    """A linear classifier of the normalised mean of the tokens.

    Args:
        d: width of the states.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.detection = nn.Linear(d, 1)

    def forward(self, states: Tensor, valid: Tensor, centres: Tensor) -> Decoded:
        """Decode as :meth:`QueryDecoder.forward` does; `centres` are not looked at."""
        with torch.autocast(states.device.type, enabled=False):
            logit = self.detection(self.norm(_pooled(states, valid, self.norm.weight.dtype)))[:, 0]
            nothing = logit.new_zeros(len(logit), 0)
            return Decoded(logit, nothing, nothing[..., None].expand(-1, -1, 4), nothing, None, valid)

    def lower(self, objectness: float, tokens: float) -> None:
        """Do nothing: there are no places."""


def position_code(centres: Tensor, width: int) -> Tensor:
    """Compute e: (…, 2) in [0, 1] -> (…, `width`), a multiple of 4."""
    octaves = torch.linspace(-1, 6, width // 4, dtype=centres.dtype, device=centres.device)
    angles = centres[..., None] * (math.pi * 2**octaves)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def decode_boxes(
    boxes: Tensor, objectness: Tensor, width: int, height: int, min_score: float = 0.5, iou: float = 0.5
) -> Boxes:
    """Return the boxes of one picture in its pixels, highest score first, after non-maximum suppression.

    Args:
        boxes: (K, 4) cx, cy, w, h in [0, 1].
        objectness: (K,) logits.
        width: of the picture in pixels.
        height: likewise.
        min_score: boxes whose objectness probability is lower are dropped.
        iou: of two boxes that overlap more, the one with the higher score stays.
    """
    scores = objectness.detach().double().sigmoid()
    scale = torch.tensor([width, height, width, height], dtype=torch.float64, device=boxes.device)
    found = corners(boxes.detach().double()).clamp(0, 1) * scale
    found, scores = found[scores >= min_score], scores[scores >= min_score]
    kept = nms(found, scores, iou)
    return Boxes(found[kept].cpu().numpy(), scores[kept].cpu().numpy(), size=(width, height))


def _clean(states: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Return states in `dtype`, zero where not valid."""
    return states.to(dtype).masked_fill(~valid[..., None], 0.0)


def _pooled(states: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute the mean (B, d) of the valid tokens."""
    return _clean(states, valid, dtype).sum(dim=1) / valid.sum(dim=1, keepdim=True)


def corners(boxes: Tensor) -> Tensor:
    """Convert (…, 4) cx, cy, w, h -> left, top, right, bottom."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)
