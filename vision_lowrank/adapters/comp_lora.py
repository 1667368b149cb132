"""Comp-LoRA: LoRA inside the orthogonal complement of the dominant singular directions of each frozen weight.

Paper: "Complementary Subspace Low-Rank Adaptation of Vision-Language Models for Few-Shot Classification",
arXiv 2501.15040. With the full SVD W = P diag(σ) Qᵀ of W (out, in), P (out, out), Q (in, in), and protected rank k::

    Q_k = Q[:, :k],  P_k = P[:, :k],      U_c = Q[:, k:] (in, c_in),  V_c = P[:, k:] (out, c_out)
    y = x Wᵀ + b + s · drop(x) U_c Aᵀ Bᵀ V_cᵀ,      ΔW = s · V_c B A U_cᵀ,      s = alpha / sqrt(r)

Hence ΔW Q_k = 0 and P_kᵀ ΔW = 0: the top k singular triplets of W survive training and merging exactly.

``form="basis"`` trains A (r, c_in) and B (c_out, r): r (in + out - 2k) parameters, buffers U_c and V_c.
``form="projector"`` trains A (r, in) and B (out, r) and uses A (I - Q_k Q_kᵀ) and (I - P_k P_kᵀ) B: small buffers for
small k. Both start from the same A (Kaiming-uniform over c_in) and B = 0, follow the same trajectory under SGD, and
differ under Adam, which is not rotation invariant.

Bases of an SVD are not unique: A and B mean nothing without the very U_c and V_c. Checkpoints therefore hold the
expanded pair A U_cᵀ (r, in) and V_c B (out, r), an ordinary LoRA, and never the bases; loading takes A = A_exp U_c and
B = V_cᵀ B_exp with the bases of the loading machine, whatever their signs, and refuses a pair outside the complement.

Reconstructed: how k is chosen (no source says), the scale and the initialisation.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ArtefactError, UserError, near_miss
from ..registry import register
from .base import AdapterConfig, Factors, Start, WeightUpdate, check_rank
from .tuner import register_method

logger = logging.getLogger(__name__)

DEFAULT_RATIO = 0.5
# Relative part of a loaded pair that may lie outside the complement: rounding of half-precision files stays below.
OUTSIDE = 1e-2


@register(
    "adapter",
    "comp_lora",
    summary="LoRA in the complement of each weight's top singular directions: forgets less",
    paper="arXiv 2501.15040",
)
@dataclass
class CompLoraConfig(AdapterConfig):
    """Options of Comp-LoRA. At most one of the three ways to choose k; without any, ``protect_ratio`` is 0.5.

    Raises:
        UserError: more than one of them, a value out of range, or an unknown form.
    """

    protect_rank: int | None = field(default=None, metadata={"help": "k itself", "ge": 0})
    protect_ratio: float | None = field(
        default=None,
        metadata={"help": "k = round(ratio * min(in, out)); 0.5 if none of the three is given", "ge": 0, "le": 1},
    )
    protect_energy: float | None = field(
        default=None,
        metadata={"help": "smallest k whose squared singular values hold this share of the total", "ge": 0, "le": 1},
    )
    form: Literal["basis", "projector"] = field(
        default="basis",
        metadata={"help": "`basis` trains inside the complement, `projector` projects a full-size pair"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise UserError(f"unknown form '{self.form}'.{near_miss(self.form, FORMS)} Known: {', '.join(FORMS)}.")
        ways = ("protect_rank", "protect_ratio", "protect_energy")
        given = [way for way in ways if getattr(self, way) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} each choose the protected rank: give exactly one of them.")
        if not given:
            self.protect_ratio = DEFAULT_RATIO
        elif given == ["protect_rank"]:
            if self.protect_rank < 0:
                raise UserError(f"protect_rank = {self.protect_rank}: it must be 0 or more.")
        elif not 0 <= getattr(self, given[0]) <= 1:
            raise UserError(f"{given[0]} = {getattr(self, given[0])}: it is a share, from 0 to 1.")


def protected_rank(sigma: Tensor, config: CompLoraConfig) -> int:
    """Compute k of a weight from its singular values (min(in, out),), descending."""
    if config.protect_rank is not None:
        return config.protect_rank
    if config.protect_ratio is not None:
        return round(config.protect_ratio * len(sigma))
    energy = sigma.double().square().cumsum(0)
    if config.protect_energy == 0 or energy[-1] == 0:
        return 0
    return min(int((energy < config.protect_energy * energy[-1]).sum()) + 1, len(sigma))


class CompLora(WeightUpdate):
    """What both forms share: the SVD, k, and checkpoints of the expanded pair."""

    like: Tensor

    def __init__(self, weight: Tensor, config: CompLoraConfig, name: str) -> None:
        super().__init__(config)
        self.out_features, self.in_features = weight.shape
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        self.register_buffer("like", wide.new_empty(0), persistent=False)
        P, sigma, Qt = torch.linalg.svd(wide, full_matrices=True)
        k = protected_rank(sigma, config)
        largest = max(min(weight.shape) - k, 0)
        check_rank(config.r, largest, name, f"whose complement has {largest} directions (protected rank {k})")
        self.k = k
        energy = sigma.double().square()
        self.energy = float(energy[:k].sum() / energy.sum()) if energy.any() else 0.0
        logger.info("%s: protected rank %d of %d, energy %.4f", name, k, len(sigma), self.energy)
        A = torch.empty(config.r, weight.shape[1] - k, device=wide.device, dtype=wide.dtype)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        self.build(A, P, Qt.T)

    def build(self, A: Tensor, P: Tensor, Q: Tensor) -> None:
        """Create parameters and buffers from the start A (r, c_in), P (out, out) and Q (in, in)."""
        raise NotImplementedError

    def expand(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Expand the own pair to (A_exp (r, in), B_exp (out, r)), inside the complement."""
        raise NotImplementedError

    def reduce(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Reduce (A_exp, B_exp) to the own pair: the inverse of :meth:`expand` on the complement."""
        raise NotImplementedError

    def own_factors(self) -> Factors:
        """Return A_exp (r, in), B_exp (out, r), s."""
        return Factors(*self.expand(self.A, self.B), self.scale)

    @torch.no_grad()
    def start_from(self, start: Start) -> None:
        """Set the pair to the part of the start that lies in the complement."""
        A, B = self.reduce(start.A, start.B @ start.core)
        self.A.copy_(A)
        self.B.copy_(B)

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Expand the pair."""
        A, B = self.expand(state["A"], state["B"])
        return state | {"A": A, "B": B}

    def unpack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Reduce an expanded pair to the own one.

        Raises:
            ArtefactError: the pair does not lie in the complement: it was trained on other weights or options.
        """
        if state["A"].shape[1] != self.in_features or state["B"].shape[0] != self.out_features:
            return state  # of another layer's size: PEFT's own message names the tensor
        saved = [state[name].to(self.like) for name in ("A", "B")]
        own = self.reduce(*saved)
        for before, after in zip(saved, self.expand(*own), strict=True):
            if (before - after).norm() > OUTSIDE * before.norm():
                raise ArtefactError(
                    "a saved Comp-LoRA pair lies outside this weight's complement: it was trained on other base "
                    "weights or with other protect_* options; load it on its own base."
                )
        return state | {"A": own[0], "B": own[1]}

    def facts(self) -> dict[str, float]:
        """Return k, the sizes of the complement and the share of energy that is protected."""
        return {
            "k": self.k,
            "c_in": self.in_features - self.k,
            "c_out": self.out_features - self.k,
            "energy": self.energy,
        }


class BasisCompLora(CompLora):
    """A (r, c_in), B (c_out, r); buffers U_c (in, c_in), V_c (out, c_out)."""

    def build(self, A: Tensor, P: Tensor, Q: Tensor) -> None:
        """Keep the complement's bases."""
        self.register_buffer("U_c", Q[:, self.k :].contiguous(), persistent=False)
        self.register_buffer("V_c", P[:, self.k :].contiguous(), persistent=False)
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(A.new_zeros(len(P) - self.k, len(A)))

    def expand(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Compute (A U_cᵀ, V_c B)."""
        # V_c B by its transpose: with r rows instead of r columns the product and its gradient are three times faster.
        return A @ self.U_c.T, (B.T.contiguous() @ self.V_c.T).T

    def reduce(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Compute (A U_c, V_cᵀ B)."""
        return A @ self.U_c, self.V_c.T @ B


class ProjectorCompLora(CompLora):
    """A (r, in), B (out, r); buffers Q_k (in, k), P_k (out, k)."""

    def build(self, A: Tensor, P: Tensor, Q: Tensor) -> None:
        """Keep the protected directions; start from the same A as the basis form."""
        self.register_buffer("Q_k", Q[:, : self.k].contiguous(), persistent=False)
        self.register_buffer("P_k", P[:, : self.k].contiguous(), persistent=False)
        self.A = nn.Parameter(A @ Q[:, self.k :].T)
        self.B = nn.Parameter(A.new_zeros(len(P), len(A)))

    def expand(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Compute (A - A Q_k Q_kᵀ, B - P_k P_kᵀ B)."""
        return A - (A @ self.Q_k) @ self.Q_k.T, B - self.P_k @ (self.P_k.T @ B)

    def reduce(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Project the pair itself back into the complement."""
        return self.expand(A, B)


FORMS = {"basis": BasisCompLora, "projector": ProjectorCompLora}


def comp_lora(weight: Tensor, config: CompLoraConfig, name: str) -> CompLora:
    """Build the update of one linear in the form that `config` names."""
    return FORMS[config.form](weight, config, name)


register_method("comp_lora", CompLoraConfig, comp_lora)
