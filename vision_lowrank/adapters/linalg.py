"""What methods and initialisers compute from a weight's spectrum: the truncated SVD, and ranks per layer.

Ranks as LaMDA++ (arXiv 2406.12832) chooses them, without data or training. With singular values σ_i of a layer's
weight, the energy that rank ρ captures is E(ρ) = Σ_{i≤ρ} σ_i² / Σ_i σ_i². A layer whose energy is reached at a small
rank needs a small one. Starting from the smallest candidate everywhere, the layer of lowest E is raised to its next
candidate again and again, until the ranks sum to the budget. The paper gives the idea; this rule is reconstructed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UserError


def truncated_svd(weight: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute U (out, r), σ (r,) descending and Vᵀ (r, in) of the r largest singular triplets, float32 or wider.

    The sign of every triplet is fixed, the largest entry of each row of Vᵀ being positive, so that the result does not
    depend on the routine.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    U, sigma, Vt = torch.linalg.svd(wide, full_matrices=False)
    U, Vt = U[:, :r], Vt[:r]
    sign = Vt.gather(1, Vt.abs().argmax(dim=1, keepdim=True)).sign()
    return U * sign.T, sigma[:r], Vt * sign


def energies(weight: Tensor) -> Tensor:
    """Compute E(ρ) for ρ = 0 .. min(out, in) of a weight (out, in), float64; all ones for a weight of zeros."""
    energy = torch.linalg.svdvals(weight.double()).square()
    total = energy.sum()
    share = energy.cumsum(0) / total if total > 0 else torch.ones_like(energy)
    return torch.cat([share.new_full((1,), float(total == 0)), share])


def allocate_ranks(weights: Mapping[str, Tensor], r: int, candidates: Sequence[int]) -> dict[str, int]:
    """Allocate a rank out of `candidates` to every layer; they sum to at most len(weights) · r.

    Args:
        weights: layer name -> (out, in).
        r: average rank.
        candidates: allowed ranks; those that a layer has no room for are left out there.

    Raises:
        UserError: the smallest candidate is below 1, above `r`, or above a layer's size.
    """
    levels = sorted(set(candidates))
    if not levels or not 1 <= levels[0] <= r:
        raise UserError(f"candidate ranks {list(candidates)}: the smallest must be from 1 to the average rank r = {r}.")
    ranks = dict.fromkeys(weights, levels[0])
    for name, weight in weights.items():
        if levels[0] > min(weight.shape):
            raise UserError(f"candidate rank {levels[0]} is too large for '{name}' of {tuple(weight.shape)}.")
    captured = {name: energies(weight) for name, weight in weights.items()}
    left = len(weights) * r - sum(ranks.values())
    open_layers = set(weights)
    while open_layers:
        name = min(sorted(open_layers), key=lambda each: float(captured[each][ranks[each]]))
        higher = [level for level in levels if ranks[name] < level <= min(weights[name].shape)]
        if higher and higher[0] - ranks[name] <= left:
            left -= higher[0] - ranks[name]
            ranks[name] = higher[0]
        else:
            open_layers.remove(name)
    return ranks
