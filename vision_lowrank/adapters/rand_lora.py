"""RandLoRA: a full-rank update from frozen random bases of which only diagonal scalings are learned.

Paper: "RandLoRA: Full-rank parameter-efficient fine-tuning of large models", arXiv 2502.00987. With d = min(out, in),
D = max(out, in) and n = ⌈d / r⌉ bases::

    M = Σ_j B_j diag(λ_j) A diag(γ_j)   (D, d),      ΔW = s · M where out ≥ in, else s · Mᵀ,      s = alpha / r

B_j (D, r) and the one A (r, d) are frozen, drawn once from a seed and shared by all layers; λ (r, n) starts at zero
and γ (n, d) at 1 / max(n, d). n (r + d) parameters per layer: *fewer* as r grows, down to r + d for r ≥ d. The rows of
γ are equal until the second step, and the rank of ΔW is at most r until then.

The layers are PEFT's own and so is what is saved: a RandLoRA config of PEFT, which loads without this package.
PEFT pairs column (j, k) of its flattened B with another λ than the formula above; as B is random that is a relabelling,
but checkpoints of the research code are not interchangeable. alpha defaults to 2r, the lower end of what the author
recommends (2r to 20r; PEFT's default is 20r): lower it or the learning rate where the loss explodes.

Costs to know: the products are those of a LoRA of rank n r ≥ d. An up- and a down-projection adapted together make PEFT
size the bases for the largest input times the largest output. ``save`` writes the shared bases once; PEFT's own
``save_pretrained`` once per layer. Export to plain LoRA cuts a full-rank update: prefer merged weights.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import peft

from ..errors import UserError
from ..registry import register
from .base import check_common

OWN = ("alpha", "dropout")
TYPICAL_WIDTH = 768  # of a ViT-B; the sparsity of very sparse bases depends on the width


@register("adapter", "rand_lora", summary="full-rank update from shared frozen random bases", paper="arXiv 2502.00987")
@dataclass
class RandLoraConfig(peft.RandLoraConfig):
    """Options of RandLoRA; `randlora_alpha` and `randlora_dropout` of PEFT follow from them.

    Warns:
        UserWarning: sparse bases of so low a rank that part of A's columns is zero, so that ΔW cannot have full rank.

    Raises:
        UserError: `r` below 1, `dropout` outside [0, 1), or both kinds of sparse bases at once.
    """

    exposed: ClassVar[tuple[str, ...]] = ("r", *OWN, "sparse", "very_sparse", "projection_prng_key")

    r: int = field(
        default=6, metadata={"help": "rank of each random basis: a lower one trains more parameters", "ge": 1}
    )
    alpha: float | None = field(default=None, metadata={"help": "numerator of the scale alpha / r; 2r if not given"})
    dropout: float = field(default=0.0, metadata={"help": "dropout on the input of the adapter", "ge": 0, "lt": 1})
    sparse: bool = field(default=False, metadata={"help": "bases of -1, 0 and 1, two thirds of them 0"})
    very_sparse: bool = field(default=False, metadata={"help": "bases of -1, 0 and 1, one in sqrt(width) not 0"})
    projection_prng_key: int = field(default=0, metadata={"help": "seed of the bases"})
    randlora_alpha: float = field(init=False, default=12.0)
    randlora_dropout: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        check_common(self.r, self.dropout, "lora")
        if self.sparse and self.very_sparse:
            raise UserError("sparse and very_sparse exclude each other: choose one.")
        self.randlora_alpha = 2.0 * self.r if self.alpha is None else self.alpha
        self.randlora_dropout = self.dropout
        super().__post_init__()
        self._warn_of_dead_columns()

    def to_dict(self) -> dict[str, Any]:
        """Return PEFT's own RandLoRA config, without the names of this package."""
        return {name: value for name, value in super().to_dict().items() if name not in OWN}

    def _warn_of_dead_columns(self) -> None:
        if not (self.sparse or self.very_sparse):
            return
        nonzero = 1 / 3 if self.sparse else TYPICAL_WIDTH**-0.5
        dead = (1 - nonzero) ** self.r
        if dead > 0.01:
            where = "" if self.sparse else f" at width {TYPICAL_WIDTH}"
            warnings.warn(
                f"rand_lora with sparse bases of rank {self.r}: about {dead:.0%} of A's columns are zero{where} and "
                "never learn, so the update is not of full rank: use dense bases or a larger r.",
                stacklevel=3,
            )
