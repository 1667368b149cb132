"""NLoRA's start: the factors are blocks of the weight itself, as in Nyström's approximation.

Paper: "NLoRA: Nyström-Initiated Low-Rank Adaptation for Large Language Models", arXiv 2502.14482. With
W = [[A_W, F_W], [B_W, C_W]] and A_W = W[:r, :r]::

    A = [A_W, F_W] = W[:r, :],      B = [A_W; B_W] = W[:, :r],      core = A_W

Nyström's own approximation W ≈ B A_W⁺ A has the pseudo-inverse in the middle (``core: pinv``, exact on the first r rows
and columns); the paper puts A_W itself there (``block``), so that B core A is small, cubic in W's entries, and no
approximation of W. The paper does not subtract it: the output at the start differs from the base's by design.
``residual: true`` carries the offset that removes the difference; ``pinv``, whose product is of W's own size, needs it.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch
from pydantic import Field, model_validator

from ..adapters.base import Start, check_rank
from ..adapters.three_factor import nystrom_blocks
from ..errors import UserError
from ..registry import register
from .base import Initializer, Site

logger = logging.getLogger(__name__)

# Share of the weight's norm above which the start may hurt: residual=true takes it back.
LARGE_SHIFT = 0.1
# Relative size of the singular values of A_W that the pseudo-inverse leaves out: A_W is badly conditioned.
RCOND = 1e-3


@register(
    "initializer",
    "nystrom",
    summary="blocks of the weight, as in NLoRA: no SVD, starts away from the base",
    paper="arXiv 2502.14482",
)
class Nystrom(Initializer):
    """Options of NLoRA's start."""

    type: Literal["nystrom"] = "nystrom"
    core: Literal["block", "pinv"] = Field("block", description="the block A_W itself, or its pseudo-inverse")
    residual: bool = Field(False, description="start at the base's output, by an offset")

    @model_validator(mode="after")
    def _check(self) -> Nystrom:
        if self.core == "pinv" and not self.residual:
            raise UserError("core = pinv adds a matrix of the weight's own size: set residual=true with it.")
        return self

    def start(self, site: Site) -> Start:
        """Take the blocks of ``site.weight``.

        Raises:
            UserError: r exceeds the weight's sides, or a block is zero, so that nothing could learn.
        """
        check_rank(site.r, min(site.weight.shape), site.name, f"whose sides are {tuple(site.weight.shape)}")
        start = nystrom_blocks(site.weight, site.r)
        if not start.core.any():
            raise UserError(
                f"the first {site.r} rows and columns of '{site.name}' are zero: choose another initializer."
            )
        if self.core == "pinv":
            return start._replace(core=torch.linalg.pinv(start.core, rtol=RCOND))
        shift = float(site.scale * (start.B @ start.core @ start.A).norm() / site.weight.norm())
        level = logging.WARNING if shift > LARGE_SHIFT and not self.residual else logging.DEBUG
        logger.log(level, "%s starts %.0f%% of its weight's norm away from the base", site.name, 100 * shift)
        return start
