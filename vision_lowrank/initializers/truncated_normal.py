"""LoRAT's start: both factors are drawn, so training begins away from the pretrained function.

Paper: "Tracking Meets LoRA: Faster Training, Larger Model, Stronger Performance" (LoRAT), arXiv 2403.05231, after
BERT's initialisation::

    A, B ~ truncated normal with standard deviation 0.02, cut at ± 2;   ΔW_0 = s · B A ≠ 0

The scale at the start is small but not zero. LoRA's own start, B = 0, is what an adapter does without an initialiser.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from ..adapters.base import Start
from ..registry import register
from .base import Initializer, Site


@register("initializer", "truncated_normal", summary="LoRAT: A and B truncated normal, away from the base at the start",
          paper="arXiv 2403.05231")  # fmt: skip
class TruncatedNormal(Initializer):
    """Options of ``initializer: {type: truncated_normal}``."""

    type: Literal["truncated_normal"] = "truncated_normal"
    std: float = Field(0.02, gt=0, le=10, description="standard deviation of both factors")

    @property
    def keeps_output(self) -> bool:
        """False: the model starts away from the base, by definition."""
        return False

    def start(self, site: Site) -> Start:
        """Draw A (r, in) and B (out, r) from torch's generator; the core is the identity."""
        like = {"device": site.weight.device, "dtype": site.weight.dtype}
        out_features, in_features = site.weight.shape
        A, B = torch.empty(site.r, in_features, **like), torch.empty(out_features, site.r, **like)
        for factor in (A, B):
            nn.init.trunc_normal_(factor, std=self.std)
        return Start(A, torch.eye(site.r, **like), B)
