"""LoRA, as CLIP-LoRA uses it: PEFT's own layers under the names and the scale of this package.

Paper: "Low-Rank Few-Shot Adaptation of Vision-Language Models" (CLIP-LoRA), arXiv 2405.18541, on
"LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685::

    y = x Wᵀ + b + s · (drop(x) Aᵀ) Bᵀ,      ΔW = s · B A,      A (r, in), B (out, r)

s = alpha / sqrt(r) (``scaling="rslora"``, CLIP-LoRA's choice) or alpha / r (``"lora"``). A starts Kaiming-uniform,
B at zero. r (in + out) parameters per layer. CLIP-LoRA's recipe is r = 2, alpha = 1, dropout = 0.25 on q, k and v of
every block of both towers; the default dropout here is 0.

What is saved is an ordinary LoRA config of PEFT, which loads without this package.

With an initialiser ΔW = s · (B A - B_0 A_0) carries an offset that PEFT's layer has no place for; then
:class:`OffsetLora` takes its place, and ``export_lora`` writes the plain LoRA of rank 2r.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import peft
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..registry import register
from .base import SCALING_HELP, AdapterConfig, Factors, Start, WeightUpdate, check_common, check_rank, scale_of
from .tuner import register_method

OWN = ("alpha", "dropout", "scaling")
# What LoRA with an offset has as well.
SAME = ("r", *OWN, "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "modules_to_save")


class Derived(float):
    """A value that follows from another option; one that PEFT has set instead is a plain number."""


@register("adapter", "lora", summary="low-rank adaptation with CLIP-LoRA's scale", paper="arXiv 2405.18541")
@dataclass
class LoraConfig(peft.LoraConfig):
    """Options of LoRA; `lora_alpha`, `lora_dropout` and `use_rslora` of PEFT follow from them.

    Where PEFT's own code replaces `lora_alpha` of a config, as ``add_weighted_adapter`` does, it means lora_alpha / r.

    Raises:
        TypeError: `lora_alpha` is given.
    """

    exposed: ClassVar[tuple[str, ...]] = ("r", *OWN, "rank_pattern", "alpha_pattern", "init_lora_weights")

    r: int = field(default=2, metadata={"help": "rank", "ge": 1})
    alpha: float = field(default=1.0, metadata={"help": "numerator of the scale"})
    dropout: float = field(
        default=0.0, metadata={"help": "dropout on the input of the adapter; the recipe has 0.25", "ge": 0, "lt": 1}
    )
    scaling: Literal["rslora", "lora"] = field(default="rslora", metadata={"help": SCALING_HELP})
    lora_alpha: float | None = None
    lora_dropout: float = field(init=False, default=0.0)
    use_rslora: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        if self.lora_alpha is not None and not isinstance(self.lora_alpha, Derived):
            if self.peft_type is None:  # a new config, no copy
                raise TypeError("LoraConfig has no option 'lora_alpha': call it alpha.")
            self.alpha, self.scaling = self.lora_alpha, "lora"
        check_common(self.r, self.dropout, self.scaling)
        self.lora_alpha, self.lora_dropout = Derived(self.alpha), self.dropout
        self.use_rslora = self.scaling == "rslora"
        super().__post_init__()

    @property
    def scale(self) -> float:
        """The factor before B A."""
        return scale_of(self.alpha, self.r, self.scaling)

    def to_dict(self) -> dict[str, Any]:
        """Return PEFT's own LoRA config, without the names of this package."""
        own = super().to_dict() | {"lora_alpha": self.alpha}
        return {name: value for name, value in own.items() if name not in OWN}

    def with_offset(self) -> OffsetLoraConfig:
        """Convert to the same LoRA for layers that can carry an offset.

        Raises:
            UserError: it has options of PEFT's that those layers do not know, such as ``use_dora``.
        """
        same = {name: getattr(self, name) for name in SAME}
        plain = LoraConfig(**same)
        odd = [each.name for each in fields(self) if getattr(self, each.name) != getattr(plain, each.name)]
        if odd:
            raise UserError(f"lora with an initializer cannot have {', '.join(odd)} too: leave one of them out.")
        return OffsetLoraConfig(**same)


@dataclass
class OffsetLoraConfig(AdapterConfig):
    """LoRA on layers of this package: what :class:`LoraConfig` becomes when an initialiser is given."""


class OffsetLora(WeightUpdate):
    """A (r, in) Kaiming-uniform and B (out, r) zero, both trained."""

    def __init__(self, weight: Tensor, config: OffsetLoraConfig, name: str) -> None:
        super().__init__(config)
        out_features, in_features = weight.shape
        check_rank(config.r, min(weight.shape), name, f"a linear of {in_features} to {out_features}")
        like = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        self.A = nn.Parameter(torch.empty(config.r, in_features, **like))
        self.B = nn.Parameter(torch.zeros(out_features, config.r, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def own_factors(self) -> Factors:
        """Return A (r, in), B (out, r) and s."""
        return Factors(self.A, self.B, self.scale)

    @torch.no_grad()
    def start_from(self, start: Start) -> None:
        """Set A, and B times the core."""
        self.A.copy_(start.A)
        self.B.copy_(start.B @ start.core)


register_method("offset_lora", OffsetLoraConfig, OffsetLora)
