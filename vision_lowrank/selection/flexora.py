"""Flexora: which blocks get LoRA, found with one trained weight per block.

Paper: "Flexora: Flexible Low-Rank Adaptation for Large Language Models", arXiv 2408.10774. With logits a (n,), zero at
the start, for the n adapted blocks, every LoRA branch of block i is scaled by::

    w_i = n · softmax(a)_i,      y = x Wᵀ + b + w_i · s (drop(x) Aᵀ) Bᵀ         A (r, in), B (out, r)

so every w_i is 1 at the start and they always sum to n. The search (:mod:`.search`) trains A, B and the head on
training pictures and a on held-out ones. Blocks with a_i > 0 are kept, never none (then the largest a_i): under plain
SGD a sums to zero, so that is a weight above the geometric mean; w_i > 1, above the arithmetic mean, would keep fewer.
Then LoRA starts anew on the kept blocks alone. Merges as any LoRA.

Reconstructed: the single factor w_i. The reference code multiplies the inputs of dropout, A and B, so its branch is
scaled by w_i³ (``weight_power=3``); it drops the second term of the hypergradient (``first_order``) and sums 8
held-out batches per step.
"""

from __future__ import annotations

from typing import Literal

from peft import PeftModel
from pydantic import Field

from ..registry import register
from .base import Selection
from .gates import Gates, find_units


@register("selection", "flexora", summary="blocks to adapt, by a weight per block (Flexora)", paper="arXiv 2408.10774")
class Flexora(Selection):
    """Options of Flexora."""

    type: Literal["flexora"] = "flexora"
    val_batches: int = Field(2, ge=1, description="held-out batches per step of the logits; the reference has 8")
    softmax: Literal["tower", "joint"] = Field("tower", description="weights of each tower sum to its n, or all to n")
    weight_power: int = Field(1, ge=1, description="the branch is scaled by w to this power; 3 is the reference's")
    top_k: int | None = Field(None, ge=1, description="ablation: keep this many blocks instead of those above 0")

    def gates(self, model: PeftModel) -> Gates:
        """Make one gate per adapted block."""
        units = find_units(model, "block")
        groups = [unit.tower for unit in units] if self.softmax == "tower" else None
        return Gates(model, units, groups=groups, power=self.weight_power)

    def choose(self, gates: Gates) -> list[str]:
        """Choose the adapted modules of all blocks with a positive logit; of the largest where there is none."""
        logits = gates.logits.tolist()
        order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
        positive = [i for i in range(len(logits)) if logits[i] > 0]
        kept = sorted(order[: self.top_k]) if self.top_k else positive or order[:1]
        return [path for i in kept for path in gates.units[i].layers]
