"""DiffoRA: which modules get LoRA, found with a differentiable adaptation matrix Γ.

Paper: "DiffoRA: Enabling Parameter-Efficient LLM Fine-Tuning via Differential Low-Rank Matrix Adaptation",
arXiv 2502.08905. Γ has a row for each of L blocks and a column for each of M adapted modules of a block::

    y = x Wᵀ + b + Γ_lm · s (drop(x) Aᵀ) Bᵀ           A (r, in), B (out, r)
    relaxed:  Γ_lm = 2 σ(g_lm)                         ``sigmoid``; σ(g_lm) with ``unit_start: false``
              Γ_l  = M · softmax(g_l)                  ``row_softmax``

The search (:mod:`.search`) trains A, B and the head on training pictures and g, zero at the start, on held-out ones,
after a warm-up in which A and B train alone: while B = 0 the gradient of g is zero, and modules that learn fast early
would win. Then the largest entries become 1, the others 0: K = ceil(ρ M) of each row, or round(ρ Σ M) of all; among
equals the first. LoRA starts anew on the chosen modules. ``share`` says what the others have:

    none      nothing
    by_type   of each type (place in the block, tower, shape) one pair A, B that all of them share
    inherit   nothing; and the chosen modules go on from the A and B of the search

r (in + out) parameters per chosen module and per shared pair. Merges as any LoRA.

Reconstructed: the relaxation, its start, the rules of discretisation, the form of sharing, and all defaults. The
paper's body was not available and no code is public: results are not results with the paper's settings.
"""

from __future__ import annotations

import functools
import math
from itertools import groupby
from typing import Any, Literal

from peft import PeftConfig, PeftModel
from pydantic import Field

from ..backbones.adapted import backbone_of
from ..config.schema import Decay, RunConfig
from ..errors import UserError
from ..registry import register
from .base import Selection
from .final import adapt_anew, pairs_of, put_pairs, share_pairs
from .gates import Gates, find_units, sigmoid_weights, softmax_weights


@register("selection", "diffora", summary="modules to adapt, by a relaxed matrix (DiffoRA)", paper="arXiv 2502.08905")
class Diffora(Selection):
    """Options of DiffoRA."""

    type: Literal["diffora"] = "diffora"
    steps: int = Field(300, ge=1, description="optimiser steps of the search, warm-up included")
    warmup: int = Field(100, ge=0, description="steps in which the adapter trains alone")
    betas: tuple[Decay, Decay] = Field((0.5, 0.999), description="Adam's betas for the logits")
    relaxation: Literal["sigmoid", "row_softmax"] = Field("sigmoid", description="from logits to entries of Γ")
    unit_start: bool = Field(True, description="`sigmoid`: twice σ, so that entries start at 1")
    rho: float = Field(0.5, gt=0, le=1, description="share of the modules that is chosen")
    rule: Literal["row", "global"] = Field("row", description="choose in each block, or among all modules")
    share: Literal["none", "by_type", "inherit"] = Field("by_type", description="what modules not chosen have")

    @property
    def delay(self) -> int:
        """The warm-up."""
        return self.warmup

    def check(self, config: RunConfig) -> None:
        """Check as the base class does; shared or inherited pairs also leave no room for an initialiser."""
        super().check(config)
        if self.share != "none" and config.initializer is not None:
            raise UserError(
                f"selection: share={self.share} and an initializer exclude each other: set selection.share=none."
            )

    def gates(self, model: PeftModel) -> Gates:
        """Make one gate per adapted module; a group is a row of Γ."""
        units = find_units(model, "module")
        relax = functools.partial(sigmoid_weights, scale=2.0 if self.unit_start else 1.0)
        if self.relaxation == "row_softmax":
            relax = softmax_weights
        return Gates(model, units, relax, [unit.block for unit in units])

    def choose(self, gates: Gates) -> list[str]:
        """Choose the modules of the largest entries of Γ."""
        entries = gates.weights().tolist()
        rows = [list(range(len(entries)))]
        if self.rule == "row":
            rows = [list(row) for _, row in groupby(rows[0], key=lambda i: gates.units[i].block)]
        kept = []
        for row in rows:
            # 0.28 · 25 is a little more than 7 in floating point.
            share = round(self.rho * len(row), 9)
            count = math.ceil(share) if self.rule == "row" else max(1, round(share))
            kept += sorted(row, key=lambda i: (-entries[i], i))[:count]
        return [path for i in sorted(kept) for path in gates.units[i].layers]

    def final_model(self, model: PeftModel, gates: Gates, config: PeftConfig, **attaching: Any) -> PeftModel:
        """Build the final model as the base class does, with shared or inherited pairs."""
        chosen = self.choose(gates)
        if self.share == "none":
            return super().final_model(model, gates, config, **attaching)
        if self.share == "inherit":
            pairs = pairs_of(model, chosen)
            model = super().final_model(model, gates, config, **attaching)
            put_pairs(model, pairs)
            return model
        gates.remove()
        everywhere = [path for unit in gates.units for path in unit.layers]
        model = adapt_anew(model, config, everywhere, **attaching)
        share_pairs(model, self._types(model, gates, set(chosen)))
        return model

    @staticmethod
    def _types(model: PeftModel, gates: Gates, chosen: set[str]) -> list[list[str]]:
        """Group modules that are not chosen by type."""
        base = backbone_of(model)
        types: dict[tuple[Any, ...], list[str]] = {}
        for unit in gates.units:
            if unit.name not in chosen:
                shape = tuple(base.get_submodule(unit.name).base_layer.weight.shape)
                types.setdefault((unit.tower, unit.name.removeprefix(unit.block), shape), []).append(unit.name)
        return list(types.values())
