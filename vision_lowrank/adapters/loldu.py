"""LoLDU: the weight is factorised as permutation · lower · diagonal · upper, and only the diagonal trains.

Paper: "LoLDU: Low-Rank Adaptation via Lower-Diag-Upper Decomposition for Parameter-Efficient Fine-Tuning",
arXiv 2410.13618. LU with partial pivoting of W (out, in), k = min(out, in), the rows of U divided by its diagonal D::

    W = P L diag(D) U,      L (out, k) and U (k, in) with unit diagonals, |L_ij| ≤ 1
    B = P L[:, :r],   A = U[:r],   z_0 = D[:r]
    y = x Wᵀ + b + σ · ((x Aᵀ) ⊙ (z - z_0)) Bᵀ,      ΔW = σ · B diag(z - z_0) A,      σ = alpha / r

Trained: z (r,), r numbers per layer; it starts at z_0, so ΔW is exactly zero. The paper freezes the residual
W - σ B diag(z_0) A instead of W: the same function and gradient, but disabling it does not give the base back, and W
has to be altered. Only z - z_0 matters, so the paper's other starts of z change nothing but what weight decay pulls
towards; z is exempt from decay here. The first r directions are the first r steps of the elimination: not the most
important ones, and not orthogonal. σ is small (1/768 for a ViT-B with alpha = 1), so z wants a learning rate of 1e-3
to 3e-2. ``train_scaling`` also trains σ, which the public code sets up and leaves out.

Directions whose pivot is at most 1e-7 of the largest are inactive: their rows of U cannot be normalised, A and B are
zero there and z never moves. The LU is computed in float64 on the CPU from the weight as stored. A and B are computed
again when an adapter is loaded; the permutation and a checksum of both are saved with z and z_0, and a checkpoint
whose factors differ is refused: z means nothing without them.

Reconstructed: learning rates and targets for vision (no source gives them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ArtefactError
from ..registry import register
from .base import Factors, LoraScaledConfig, MethodConfig, WeightUpdate, check_common, check_rank
from .tuner import register_method

SMALLEST_PIVOT = 1e-7
# Relative difference that rounding to half precision may bring into a checksum; another pivot changes it altogether.
CHECKSUM_TOLERANCE = 1e-2


@register(
    "adapter",
    "loldu",
    summary="trains only the diagonal of the weight's own LU factorisation: r numbers per layer",
    paper="arXiv 2410.13618",
)
@dataclass
class LolduConfig(LoraScaledConfig):
    """Options of LoLDU."""

    r: int | None = field(
        default=None, metadata={"help": "number of diagonal entries; all min(in, out) if not given", "ge": 1}
    )
    train_scaling: bool = field(default=False, metadata={"help": "train the scale too, one number per layer"})

    def __post_init__(self) -> None:
        MethodConfig.__post_init__(self)
        check_common(1 if self.r is None else self.r, self.dropout, self.scaling)


class Ldu(NamedTuple):
    """W[permutation] = L diag(D) U: permutation (out,), L (out, k), D (k,), U (k, in), float64.

    Rows of U, and columns of L, are zero where the pivot D is too small.
    """

    permutation: Tensor
    L: Tensor
    D: Tensor
    U: Tensor


def ldu(weight: Tensor) -> Ldu:
    """Factorise a weight (out, in) as LDU with partial pivoting, in float64 on the CPU."""
    packed, pivots, _ = torch.linalg.lu_factor_ex(weight.detach().double().cpu())
    permutation = torch.arange(len(weight))
    for row, pivot in enumerate((pivots - 1).tolist()):
        permutation[[row, pivot]] = permutation[[pivot, row]]
    k = min(weight.shape)
    D = packed.diagonal().clone()
    active = D.abs() > SMALLEST_PIVOT * D.abs().max()
    L = packed[:, :k].tril(-1)
    L.diagonal().fill_(1)
    U = torch.where(active[:, None], packed[:k].triu() / D[:, None], 0.0)
    return Ldu(permutation, torch.where(active, L, 0.0), D, U)


class Loldu(WeightUpdate):
    """z (r,) and perhaps a gain on σ trained; A (r, in) and B (out, r) frozen."""

    no_decay = ("z", "gain")

    A: Tensor
    B: Tensor
    z0: Tensor
    permutation: Tensor
    checksum: Tensor

    def __init__(self, weight: Tensor, config: LolduConfig, name: str) -> None:
        out_features, in_features = weight.shape
        r = min(weight.shape) if config.r is None else config.r
        check_rank(r, min(weight.shape), name, f"a linear of {in_features} to {out_features}")
        super().__init__(replace(config, r=r))
        like = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        permutation, L, D, U = ldu(weight)
        B = torch.empty_like(L[:, :r])
        B[permutation] = L[:, :r]
        self.register_buffer("A", U[:r].to(**like), persistent=False)
        self.register_buffer("B", B.to(**like), persistent=False)
        self.register_buffer("z0", D[:r].to(**like))
        self.register_buffer("permutation", permutation.to(weight.device, torch.int32))
        self.register_buffer("checksum", _checksum(self.A, self.B))
        self.z = nn.Parameter(self.z0.clone())
        self.gain = nn.Parameter(self.z0.new_ones(())) if config.train_scaling else None

    def own_factors(self) -> Factors:
        """Compute A (r, in), B diag(z - z_0) (out, r) and σ; a trained gain is part of B."""
        change = self.z - self.z0
        return Factors(self.A, self.B * (change if self.gain is None else self.gain * change), self.scale)

    def unpack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Check what a checkpoint holds against the factors of this weight, and return it.

        Raises:
            ArtefactError: z was trained with other factors.
        """
        self.check_state(state)
        return state

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Refuse a diagonal that was trained with other factors.

        Raises:
            ArtefactError: it was.
        """
        if not {"checksum", "permutation"} <= state.keys():
            return  # the loader names what is missing
        saved, own = state["checksum"].to(self.checksum), self.checksum
        same_rows = torch.equal(state["permutation"].to(self.permutation), self.permutation)
        if not same_rows or (saved - own).norm() > CHECKSUM_TOLERANCE * own.norm():
            raise ArtefactError(
                "a saved LoLDU diagonal belongs to other LU factors than those of this weight: it was trained on other "
                "base weights, or this machine pivots differently; export it to plain LoRA where it was trained."
            )

    @torch.no_grad()
    def facts(self) -> dict[str, float]:
        """Count the diagonal entries and the active ones, and find the largest relative change of one."""
        active = self.A.any(dim=1)
        change = ((self.z - self.z0) / self.z0)[active].abs()
        return {
            "rank": len(self.z),
            "active": int(active.sum()),
            "largest_change": float(change.max()) if any(active) else 0.0,
        }


def _checksum(A: Tensor, B: Tensor) -> Tensor:
    """Compute two numbers that depend on every entry of A and B, with weights that no permutation leaves alone."""
    weights = [torch.arange(1, t.numel() + 1, device=t.device, dtype=t.dtype).sqrt().sin().view_as(t) for t in (A, B)]
    return torch.stack([(A * weights[0]).sum(), (B * weights[1]).sum()])


register_method("loldu", LolduConfig, Loldu)
