"""Block-LoRA: n arms B_i that share one down-projection A.

Paper: "One Head Eight Arms: Block Matrix based Low Rank Adaptation for CLIP-based Few-Shot Learning",
arXiv 2501.16720. LoRA of nominal rank r is cut into n blocks, A = [A_1 … A_n], B = [B_1; …; B_n], and all A_i are one::

    y = x Wᵀ + b + s · (drop(x) Aᵀ) (Σ_i B_i)ᵀ,      ΔW = s · (Σ_i B_i) A

with block rank q = r / n, A (q, in) and B (n, out, q), both trained. s = alpha / sqrt(r) with the *nominal* r, so that
n = 1 is LoRA. A starts Kaiming-uniform (U(±1/sqrt(in))), every arm at zero, so ΔW = 0 at the start. Parameters per
layer: (r / n) · in + r · out. The arms are summed before the product: the cost is that of rank q.

Reconstructed: scale and initialisation follow CLIP-LoRA, as the paper's own were not readable.

What it means: rank(ΔW) ≤ r / n, and all arms receive the same gradient, so they stay equal. Training is LoRA of rank
r / n whose B has its learning rate multiplied by n (its weight decay divided by n). Two controls follow, whose sizes
each layer reports: LoRA of the block rank r / n, the same space of updates, and LoRA of the nominal rank r.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..registry import register
from .base import AdapterConfig, Factors, Start, WeightUpdate, check_rank
from .tuner import register_method


@register(
    "adapter",
    "block_lora",
    summary="LoRA whose blocks share one down-projection: fewer parameters",
    paper="arXiv 2501.16720",
)
@dataclass
class BlockLoraConfig(AdapterConfig):
    """Options of Block-LoRA.

    Raises:
        UserError: `r` is not divisible by `blocks`.
    """

    blocks: int = field(default=2, metadata={"help": "number of arms n; r must be divisible by it", "ge": 1})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks < 1:
            raise UserError(f"blocks = {self.blocks}: at least 1 is needed; 1 is plain LoRA.")
        if self.r % self.blocks:
            raise UserError(f"r = {self.r} is not divisible by blocks = {self.blocks}: choose a multiple of it.")


class BlockLora(WeightUpdate):
    """A (q, in) and the arms B (n, out, q), q = r / n."""

    def __init__(self, weight: Tensor, config: BlockLoraConfig, name: str) -> None:
        super().__init__(config)
        out_features, in_features = weight.shape
        largest = min(weight.shape) * config.blocks
        check_rank(config.r, largest, name, f"a linear of {in_features} to {out_features} in {config.blocks} blocks")
        rank = config.r // config.blocks
        like = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        self.A = nn.Parameter(torch.empty(rank, in_features, **like))
        self.B = nn.Parameter(torch.zeros(config.blocks, out_features, rank, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def own_factors(self) -> Factors:
        """Return A (q, in), ΣB (out, q) and s."""
        return Factors(self.A, self.B.sum(dim=0), self.scale)

    @torch.no_grad()
    def start_from(self, start: Start) -> None:
        """Set A (q, in), and B (out, q) in equal parts on the n arms."""
        self.A.copy_(start.A)
        self.B.copy_((start.B @ start.core / len(self.B)).expand_as(self.B))

    def facts(self) -> dict[str, float]:
        """Return the block rank, the nominal one, and the parameters of this layer and of LoRA at both ranks."""
        rank, width = len(self.A), self.A.shape[1] + self.B.shape[1]
        nominal = rank * len(self.B)
        sizes = {"parameters": self.A.numel() + self.B.numel()}
        sizes |= {"lora_at_block_rank": rank * width, "lora_at_nominal_rank": nominal * width}
        return {"rank": rank, "nominal_rank": nominal, **sizes}


register_method("block_lora", BlockLoraConfig, BlockLora)
