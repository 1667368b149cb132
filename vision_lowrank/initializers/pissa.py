"""PiSSA: start from the leading singular triplets of the weight.

Paper: "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models", arXiv 2404.02948.
With W ≈ U_r Σ_r V_rᵀ and the method's scale s::

    A = √(Σ_r / s) V_rᵀ,      B = U_r √(Σ_r / s),      core = 1,      s · B A = U_r Σ_r V_rᵀ

The paper freezes W - s B A; here W stays and the product is carried as an offset, so the output is unchanged and the
trained update exports exactly as a LoRA of rank 2r.
"""

from __future__ import annotations

from typing import Literal

import torch

from ..adapters.base import Start, check_rank
from ..adapters.linalg import truncated_svd
from ..registry import register
from .base import Initializer, Site


@register(
    "initializer", "pissa", summary="leading singular triplets of the weight, as in PiSSA", paper="arXiv 2404.02948"
)
class Pissa(Initializer):
    """Options of PiSSA: none."""

    type: Literal["pissa"] = "pissa"

    def start(self, site: Site) -> Start:
        """Compute the leading triplets of ``site.weight``.

        Raises:
            UserError: r exceeds the weight's sides.
        """
        check_rank(site.r, min(site.weight.shape), site.name, f"whose sides are {tuple(site.weight.shape)}")
        U, sigma, Vt = truncated_svd(site.weight, site.r)
        root = (sigma / site.scale).sqrt()
        return Start(root[:, None] * Vt, torch.eye(site.r).to(Vt), U * root)
