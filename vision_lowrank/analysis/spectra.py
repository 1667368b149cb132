"""The spectra of a frozen weight and of the tuned one, and how large and how spread out the change is.

W0 (out, in) is the frozen weight, ΔW (out, in) what any method adds, W = W0 + ΔW, n = min(out, in)::

    W0 = U0 S0 V0ᵀ,   W = U S Vᵀ        U0, U (out, n), V0, V (in, n), singular values descending
    effective rank = exp(-Σ p_i ln p_i),   p_i = σ_i / Σ σ_i,   σ the singular values of ΔW     (Roy and Vetterli, 2007)
    relative norm  = ‖ΔW‖_F / ‖W0‖_F

Everything is computed in the wider of the two types and at least in float32: in half precision an SVD fails or is
wrong, and a W0 rounded otherwise than W would show differences that nothing learnt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class Spectra:
    """Thin SVDs of W0 and of W = W0 + ΔW, n = min(out, in) triplets each, largest first.

    Attributes:
        base_left: U0 (out, n).
        base_values: S0 (n,).
        base_right: V0 (in, n).
        left: U (out, n).
        values: S (n,).
        right: V (in, n).
    """

    base_left: Tensor
    base_values: Tensor
    base_right: Tensor
    left: Tensor
    values: Tensor
    right: Tensor


@torch.no_grad()
def decompose(weight: Tensor, delta: Tensor) -> Spectra:
    """Compute both SVDs of a pair.

    Args:
        weight: W0 (out, in), any floating type.
        delta: ΔW (out, in).

    Raises:
        UserError: the two are no matrices of one shape, or hold values that are not finite.
    """
    weight, delta = _checked(weight, delta)
    U0, S0, V0t = torch.linalg.svd(weight, full_matrices=False)
    U, S, Vt = torch.linalg.svd(weight + delta, full_matrices=False)
    return Spectra(U0, S0, V0t.T, U, S, Vt.T)


@torch.no_grad()
def effective_rank(delta: Tensor) -> float:
    """Compute exp of the entropy of ΔW's normalised singular values, 1 to min(out, in); 0 where ΔW = 0."""
    values = torch.linalg.svdvals(delta.to(torch.promote_types(delta.dtype, torch.float32)))
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


@torch.no_grad()
def relative_norm(weight: Tensor, delta: Tensor) -> float:
    """Compute ‖ΔW‖_F / ‖W0‖_F of W0 and ΔW (out, in)."""
    weight, delta = _checked(weight, delta)
    return float(delta.norm() / weight.norm())


def _checked(weight: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in one type that an SVD can be computed in."""
    if weight.dim() != 2 or weight.shape != delta.shape:
        shapes = f"{tuple(weight.shape)} and {tuple(delta.shape)}"
        raise UserError(f"weight and change have shapes {shapes}: give two matrices (out, in) of one shape.")
    dtype = torch.promote_types(torch.promote_types(weight.dtype, delta.dtype), torch.float32)
    weight, delta = weight.to(dtype), delta.to(dtype)
    if not (weight.isfinite().all() and delta.isfinite().all()):
        raise UserError("a weight has values that are not finite: its training diverged; there is nothing to analyse.")
    return weight, delta
