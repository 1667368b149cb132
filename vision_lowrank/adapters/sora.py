"""SoRA: LoRA with a gate per direction; a proximal step makes gates exactly zero, so each layer finds its own rank.

Paper: "Sparse Low-rank Adaptation of Pre-trained Language Models", arXiv 2311.11696, on r = r_max directions::

    y = x Wᵀ + b + s · ((drop(x) Aᵀ) ⊙ g) Bᵀ,      ΔW = s · B diag(g) A,      s = alpha / r
    g ← T_ξ(g - step),      T_ξ(v) = sign(v) · max(|v| - ξ, 0),      ξ = lambda · lr

A (r, in) starts Kaiming-uniform, B (out, r) at zero, g (r,) from N(0, 1); all three train, ΔW = 0 at the start. The
optimiser gives the step (AdamW, as in the reference code; with plain SGD this is ISTA on the loss + lambda Σ‖g‖₁), and
the loop calls :meth:`Sora.proximal_step` after each step that was really taken. Gates stay in float32, which bf16's
steps of 0.008 near 1 would freeze, and out of weight decay and clipping. Decay of A and B (0.1) belongs to the method:
ΔW is unchanged when B or A grows while g shrinks.

``prox: reference`` is the public code's threshold, which also zeroes ξ < |v| < 2ξ and leaves |v| = ξ alone;
``threshold: constant`` takes ξ = lambda itself, as that code does: gates that the falling learning rate no longer
holds are then pruned whatever their gradient. ``l1`` adds l1 · Σ‖g‖₁ / (number of gates of all layers) to the loss.

Schedule: ``lambdas: [0.1, 0.2, 0.4]`` trains in phases ``dense`` (lambda 0), ``sparse-1``, ``sparse-2`` and
``sparse-3``, each a full stage with its own learning rate schedule, from the weights of the one before.

After training, with I = {i: g_i ≠ 0} and r' = |I|, ΔW = s · (B diag(g))[:, I] A[I] exactly: r' (in + out) parameters.
That is what :meth:`Sora.export_factors` gives, so a plain LoRA gets ``rank_pattern`` r' and ``alpha_pattern``
s · r' = alpha · r' / r per layer. A layer with r' = 0 has no change to export.

Reconstructed: ξ = lambda · lr is the paper's form as far as it is known; lambda from 0.1 to 0.6 is our own advice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import UserError, near_miss
from ..registry import register
from .base import Factors, LoraScaledConfig, Start, WeightUpdate, check_rank
from .tuner import register_method


def soft_threshold(v: Tensor, xi: float) -> Tensor:
    """Compute T_ξ(v) = sign(v) · max(|v| - ξ, 0), elementwise: the proximal operator of ξ |v|."""
    return v.sign() * (v.abs() - xi).clamp(min=0)


def reference_threshold(v: Tensor, xi: float) -> Tensor:
    """Compute what the public code does in place: shrink by ξ where |v| > ξ, then zero whatever is below ξ."""
    shrunk = torch.where(v.abs() > xi, v - xi * v.sign(), v)
    return torch.where(shrunk.abs() < xi, 0.0, shrunk)


PROX: dict[str, Callable[[Tensor, float], Tensor]] = {"true": soft_threshold, "reference": reference_threshold}
THRESHOLDS = ("lr", "constant")


@register(
    "adapter",
    "sora",
    summary="LoRA whose directions have gates that become exactly zero: each layer finds its rank",
    paper="arXiv 2311.11696",
)
@dataclass
class SoraConfig(LoraScaledConfig):
    """Options of SoRA.

    Raises:
        UserError: an unknown `prox` or `threshold`, a negative strength, or `lambdas` that do not increase.
    """

    r: int = field(default=16, metadata={"help": "largest rank of a layer", "ge": 1})
    alpha: float = field(default=16.0, metadata={"help": "numerator of the scale"})
    lam: float = field(
        default=0.2, metadata={"help": "lambda, the strength of sparsity; 0.1 to 0.6 with `threshold: lr`", "ge": 0}
    )
    lambdas: list[float] | None = field(
        default=None, metadata={"help": "increasing lambdas: a dense phase, then one phase for each; replaces `lam`"}
    )
    threshold: Literal["lr", "constant"] = field(
        default="lr", metadata={"help": "`lr`: lambda times the learning rate; `constant`: lambda itself"}
    )
    prox: Literal["true", "reference"] = field(
        default="true", metadata={"help": "soft threshold, or the harder one of the public code"}
    )
    l1: float = field(default=0.0, metadata={"help": "weight of the mean |gate| in the loss", "ge": 0})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layers = 1
        for name, known in (("prox", PROX), ("threshold", THRESHOLDS)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"unknown {name} '{value}'.{near_miss(value, known)} Known: {', '.join(known)}.")
        for name in ("lam", "l1"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} = {getattr(self, name)}: it must be 0 or more.")
        values = [0.0, *(self.lambdas or [])]
        if self.lambdas == [] or not all(low < high for low, high in pairwise(values)):
            raise UserError(f"lambdas = {self.lambdas}: give positive numbers in increasing order.")

    def prepare(self, weights: Mapping[str, Tensor]) -> None:
        """Count the layers, over whose gates ``l1`` takes the mean."""
        self.layers = len(weights)

    def schedule(self) -> dict[str, float]:
        """Return lambda by phase."""
        if self.lambdas is None:
            return {"train": self.lam}
        return {"dense": 0.0} | {f"sparse-{k}": lam for k, lam in enumerate(self.lambdas, start=1)}

    def phases(self) -> dict[str, dict[str, Any]]:
        """Return ``train`` alone, or ``dense`` and one phase per lambda."""
        return {phase: {} for phase in self.schedule()}

    def begin_phase(self, updates: Mapping[str, WeightUpdate], phase: str) -> None:
        """Set the phase's lambda."""
        for update in updates.values():
            update.lam = self.schedule()[phase]


class Sora(WeightUpdate):
    """A (r, in), B (out, r) and gates g (r,), all trained."""

    no_decay = ("g",)
    no_clip = ("g",)

    def __init__(self, weight: Tensor, config: SoraConfig, name: str) -> None:
        super().__init__(config)
        out_features, in_features = weight.shape
        check_rank(config.r, min(weight.shape), name, f"a linear of {in_features} to {out_features}")
        self.lam = next(iter(config.schedule().values()))
        self.follows_lr, self.prox = config.threshold == "lr", PROX[config.prox]
        self.l1 = config.l1 / (config.r * config.layers)
        like = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        self.A = nn.Parameter(torch.empty(config.r, in_features, **like))
        self.B = nn.Parameter(torch.zeros(out_features, config.r, **like))
        self.g = nn.Parameter(torch.randn(config.r, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def own_factors(self) -> Factors:
        """Return A (r, in), B diag(g) (out, r), s."""
        return Factors(self.A, self.B * self.g, self.scale)

    @torch.no_grad()
    def export_factors(self) -> Factors:
        """Return the same ΔW without the directions whose gate is zero, of rank r' (and that of an offset)."""
        A, B, scale = self.factors()
        kept = torch.ones(len(A), dtype=torch.bool, device=A.device)
        kept[: len(self.g)] = self.g != 0
        return Factors(A[kept], B[:, kept], scale)

    @torch.no_grad()
    def start_from(self, start: Start) -> None:
        """Set A, B times the core, and open gates."""
        self.A.copy_(start.A)
        self.B.copy_(start.B @ start.core)
        self.g.fill_(1)

    def extra_losses(self) -> dict[str, Tensor]:
        """Compute this layer's part of l1 · mean |g|."""
        return {"gates": self.l1 * self.g.abs().sum()} if self.l1 and self.g.requires_grad else {}

    @torch.no_grad()
    def proximal_step(self, lr: float) -> None:
        """Shrink the gates by ξ after an optimiser step of learning rate `lr`."""
        if self.g.requires_grad:
            self.g.copy_(self.prox(self.g, self.lam * lr if self.follows_lr else self.lam))

    def facts(self) -> dict[str, float]:
        """Return the kept rank r', the largest rank r, and the parameters after pruning."""
        kept = int(self.g.count_nonzero())
        return {"rank": kept, "largest_rank": len(self.g), "parameters": kept * (self.A.shape[1] + self.B.shape[0])}


register_method("sora", SoraConfig, Sora)
