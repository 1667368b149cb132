"""The core of attention: what happens between its projections, as a module that an adapter can wrap.

Every split attention (:mod:`vision_lowrank.attention.split`) calls its ``core`` with the q, k and v of all heads,
after norms and rotary positions. It holds no tensors, so it adds nothing to a state dict.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DotProductAttention(nn.Module):
    """softmax(q k' · scale + mask) v for every head, by ``F.scaled_dot_product_attention`` where it can."""

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend: q (B, H, L, d), k (B, H, S, d), v (B, H, S, e) -> (B, H, L, e), and weights (B, H, L, S) if needed.

        Arguments are those of ``F.scaled_dot_product_attention``. With `need_weights`, which that function cannot give,
        the mask must be one to add.
        """
        if not need_weights:
            return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale), None
        weights = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        weights = F.dropout((weights if attn_mask is None else weights + attn_mask).softmax(-1), dropout_p)
        return weights @ v, weights
