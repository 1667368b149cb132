"""The pairs (W0, ΔW) of a model whose base weights were trained themselves: full fine-tuning, LISA.

ΔW = W - W0 of the linears of all transformer blocks, q, k and v apart, in float64. What training left as it was is left
out, so are embeddings, the patch convolution and whatever else lies outside the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..attention.split import fuse_attention, split_attention
from ..backbones.base import Backbone
from ..errors import UserError
from .layers import LayerPair, paired_weights


def trained_pairs(base: Backbone, tuned: Backbone) -> Iterator[LayerPair]:
    """Yield pairs of the blocks' linears that differ, each computed on demand; in the end both models are whole.

    Args:
        base: the backbone as it was.
        tuned: the same after training, without adapters; attention is split in both while the pairs are computed.

    Raises:
        UserError: no linear of a block differs, or the two are no models of one architecture.
    """
    kinds = {
        f"{block}.{path}": f"{tower.name} {logical}"
        for tower in base.towers.values()
        for block in tower.blocks
        for logical, path in tower.modules.items()
    }
    found = False
    try:
        for model in (base, tuned):
            split_attention(model)
        for pair in paired_weights(base, tuned):
            if pair.name in kinds and pair.delta.any():
                found = True
                yield pair._replace(kind=kinds[pair.name])
    finally:
        for model in (base, tuned):
            fuse_attention(model)
    if not found:
        raise UserError("no matrix of a block was trained: only other weights differ from those of the base.")
