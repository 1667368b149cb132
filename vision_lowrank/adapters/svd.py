"""The truncated SVD that methods and initialisers start from."""

from __future__ import annotations

import torch
from torch import Tensor


def truncated_svd(weight: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, r), σ (r,) descending and Vᵀ (r, in) of the r largest singular triplets, float32 or wider.

    The sign of every triplet is fixed, the largest entry of each row of Vᵀ being positive, so that the result does not
    depend on the routine.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    U, sigma, Vt = torch.linalg.svd(wide, full_matrices=False)
    U, Vt = U[:, :r], Vt[:r]
    sign = Vt.gather(1, Vt.abs().argmax(dim=1, keepdim=True)).sign()
    return U * sign.T, sigma[:r], Vt * sign
