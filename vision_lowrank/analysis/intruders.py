"""Intruder dimensions: leading singular vectors of a tuned weight that resemble no vector of the frozen one.

Paper: "LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228. With the thin SVDs of
W0 = U0 S0 V0ᵀ and W = W0 + ΔW = U S Vᵀ (see :mod:`.spectra`), n = min(out, in), the j-th left vector, j <= k, is an
intruder where ::

    c_j = max over i = 1 .. n of |u_j · u0_i| < ε        (defaults k = 10, ε = 0.5)

All n frozen vectors are compared, not only the leading ones. The share of energy of the intruders I is
Σ_{j in I} s_j² / Σ_{j<=k} s_j². Scaling them to the fraction λ ("keep") gives ::

    ΔW(λ) = ΔW + (λ - 1) Σ_{j in I} s_j u_j v_jᵀ        ‖ΔW(λ) - ΔW‖_F² = (1 - λ)² Σ_{j in I} s_j²

of rank up to r + |I|: λ = 1 changes nothing, 0 removes them from W, more than 1 amplifies. Two controls tell whether
the intruders were the cause: ΔW shrunk to the norm of ΔW(λ), and as many random ones of the k triplets scaled.

A count is no score of quality: a vector spread evenly over m frozen ones has c = 1/sqrt(m), so in a wide layer every
random direction is an intruder (:func:`random_similarity`). Where singular values lie close together single vectors
are arbitrary inside their block, so a deep k counts too many; `block` compares with runs of neighbouring vectors.

Reconstructed: ``side="right"`` (V in place of U) and ``side="both"`` (new on both sides) are not in the paper, nor is
`block`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ..adapters.base import Factors
from ..errors import UserError, near_miss
from .spectra import Spectra, decompose

Side: TypeAlias = Literal["left", "right", "both"]
SIDES = ("left", "right", "both")


@dataclass(frozen=True)
class Intruders:
    """The k leading triplets of W, and which of them are intruders.

    Attributes:
        indices: (|I|,) int64, ascending, from 0.
        similarities: c_j (k,).
        values: s_j (k,).
        left: u_j (out, k).
        right: v_j (in, k).
    """

    indices: Tensor
    similarities: Tensor
    values: Tensor
    left: Tensor
    right: Tensor

    @property
    def count(self) -> int:
        """|I|."""
        return len(self.indices)

    @property
    def energy_share(self) -> float:
        """Σ_{j in I} s_j² / Σ_{j<=k} s_j²; 0 for a weight of zeros."""
        energy = self.values.square()
        return float(energy[self.indices].sum() / energy.sum()) if energy.any() else 0.0

    def component(self, indices: Tensor | None = None) -> Tensor:
        """Compute Σ_j s_j u_j v_jᵀ (out, in) over `indices`, those of the intruders if None."""
        chosen = self.indices if indices is None else indices
        return self.left[:, chosen] * self.values[chosen] @ self.right[:, chosen].T


def intruders(weight: Tensor, delta: Tensor, k: int = 10, epsilon: float = 0.5, side: Side = "left") -> Intruders:
    """Find the intruders of W0 + ΔW.

    Args:
        weight: W0 (out, in), as it was before anything was trained.
        delta: ΔW (out, in) of any method.
        k: leading triplets to look at; all where there are fewer.
        epsilon: ε.
        side: which vectors are compared.

    Raises:
        UserError: shapes, `k` or `side` that cannot be.
    """
    return find_intruders(decompose(weight, delta), k, epsilon, side)


def find_intruders(spectra: Spectra, k: int = 10, epsilon: float = 0.5, side: Side = "left") -> Intruders:
    """Find intruders as :func:`intruders`, from SVDs that are computed already."""
    if k < 1:
        raise UserError(f"k = {k}: look at one singular vector at least.")
    similar = similarities(spectra, side)[:k]
    (indices,) = torch.where(similar < epsilon)
    return Intruders(indices, similar, spectra.values[:k], spectra.left[:, :k], spectra.right[:, :k])


@torch.no_grad()
def similarities(spectra: Spectra, side: Side = "left", block: int = 1) -> Tensor:
    """Compute c_j (n,) of all vectors of W; for ``both`` the larger of the two sides.

    Args:
        spectra: of the pair.
        side: which vectors are compared.
        block: width of the runs of neighbouring frozen vectors that u_j is projected on; with 1 these are the single
            vectors, with more ‖U0_runᵀ u_j‖ of the best run.

    Raises:
        UserError: an unknown side.
    """
    if side not in SIDES:
        raise UserError(f"unknown side '{side}'.{near_miss(side, SIDES)} Known: {', '.join(SIDES)}.")
    if side == "both":
        return torch.maximum(similarities(spectra, "left", block), similarities(spectra, "right", block))
    squares = _cosines(spectra, side).square()
    runs = squares.unfold(1, min(block, squares.shape[1]), 1).sum(dim=-1)
    return runs.amax(dim=1).sqrt()


def similarity_matrix(spectra: Spectra, m: int, side: Side = "left") -> Tensor:
    """Compute |U[:, :m]ᵀ U0[:, :m]| (m, m), or that of V: row = vector of W, column = frozen one."""
    return _cosines(spectra, side)[:m, :m]


def count_grid(similar: Tensor, ks: Sequence[int], epsilons: Sequence[float]) -> Tensor:
    """Count the intruders (K, E) int64 for every k and every ε, from what :func:`similarities` gave."""
    below = similar[None, :] < torch.tensor(epsilons, dtype=similar.dtype, device=similar.device)[:, None]
    counts = torch.nn.functional.pad(below.long().cumsum(dim=1), (1, 0))  # column k: among the first k
    return counts[:, [min(k, len(similar)) for k in ks]].T


def random_similarity(dimension: int) -> float:
    """Compute the mean c of a random unit vector against an orthonormal basis of `dimension` d: what chance scores.

    With g normal, direction and length are independent: E max|g_i| / E ‖g‖, the first being
    ∫ (1 - erf(x / √2)^d) dx from 0, the second √2 Γ((d + 1) / 2) / Γ(d / 2).
    """
    x = torch.linspace(0, 12, 12001, dtype=torch.float64)
    largest = torch.trapezoid(1 - torch.erf(x / math.sqrt(2)) ** dimension, x)
    length = math.sqrt(2) * math.exp(math.lgamma((dimension + 1) / 2) - math.lgamma(dimension / 2))
    return float(largest) / length


def scale_intruders(delta: Tensor, found: Intruders, keep: float) -> Tensor:
    """Compute ΔW(λ) (out, in): the intruders of W0 + ΔW scaled to the fraction `keep` = λ.

    Without intruders, and for λ = 1, it is `delta` itself.
    """
    if not found.count or keep == 1:
        return delta
    return delta + (keep - 1) * found.component().to(delta)


def intruder_factors(factors: Factors, found: Intruders, keep: float) -> Factors:
    """Compute ΔW(λ) of ΔW = scale · B A exactly, as factors of rank r + |I| and scale 1.

    The s_j are split evenly between the two; without intruders, and for λ = 1, these are `factors` themselves.
    """
    if not found.count or keep == 1:
        return factors
    A, B, scale = factors
    root = found.values[found.indices].sqrt()
    rows = (found.right[:, found.indices] * root).T
    columns = found.left[:, found.indices] * root
    return Factors(torch.cat([A, rows.to(A)]), torch.cat([scale * B, (keep - 1) * columns.to(B)], dim=1), 1.0)


def shrink(delta: Tensor, found: Intruders, keep: float) -> Tensor:
    """Compute the control c ΔW with c = ‖ΔW(λ)‖_F / ‖ΔW‖_F."""
    norm = delta.norm()
    return delta * (scale_intruders(delta, found, keep).norm() / norm) if norm > 0 else delta


def scale_random(delta: Tensor, found: Intruders, keep: float, generator: torch.Generator) -> Tensor:
    """Scale, as a control, |I| of the k leading triplets, drawn at random, to `keep` in the intruders' place.

    Args:
        delta: ΔW (out, in).
        found: its intruders; where all k are intruders the draw is theirs.
        keep: λ.
        generator: on the CPU; the source of the draw.
    """
    drawn = torch.randperm(len(found.values), generator=generator)[: found.count].to(found.indices)
    return delta + (keep - 1) * found.component(drawn).to(delta)


def _cosines(spectra: Spectra, side: Side) -> Tensor:
    """Compute |u_j · u0_i| (n, n), row j, or that of the right vectors; rounding must not push a cosine past 1."""
    if side == "right":
        return (spectra.right.T @ spectra.base_right).abs().clamp(max=1)
    return (spectra.left.T @ spectra.base_left).abs().clamp(max=1)
