"""LoRA, as CLIP-LoRA uses it: PEFT's own layers under the names and the scale of this package.

Paper: "Low-Rank Few-Shot Adaptation of Vision-Language Models" (CLIP-LoRA), arXiv 2405.18541, on
"LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685::

    y = x Wᵀ + b + s · (drop(x) Aᵀ) Bᵀ,      ΔW = s · B A,      A (r, in), B (out, r)

s = alpha / sqrt(r) (``scaling="rslora"``, CLIP-LoRA's choice) or alpha / r (``"lora"``). A starts Kaiming-uniform,
B at zero. r (in + out) parameters per layer. CLIP-LoRA's recipe is r = 2, alpha = 1, dropout = 0.25 on q, k and v of
every block of both towers; the default dropout here is 0.

What is saved is an ordinary LoRA config of PEFT, which loads without this package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import peft

from ..registry import register
from .base import check_common, scale_of

OWN = ("alpha", "dropout", "scaling")


@register("adapter", "lora", summary="low-rank adaptation with CLIP-LoRA's scale", paper="arXiv 2405.18541")
@dataclass
class LoraConfig(peft.LoraConfig):
    """Options of LoRA; `lora_alpha`, `lora_dropout` and `use_rslora` of PEFT follow from them."""

    exposed: ClassVar[tuple[str, ...]] = ("r", *OWN, "init_lora_weights")

    r: int = field(default=2, metadata={"help": "rank"})
    alpha: float = field(default=1.0, metadata={"help": "numerator of the scale"})
    dropout: float = field(default=0.0, metadata={"help": "dropout on the input of the adapter; the recipe has 0.25"})
    scaling: Literal["rslora", "lora"] = field(
        default="rslora", metadata={"help": "`rslora`: alpha / sqrt(r); `lora`: alpha / r"}
    )
    lora_alpha: float = field(init=False, default=1.0)
    lora_dropout: float = field(init=False, default=0.0)
    use_rslora: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        check_common(self.r, self.dropout, self.scaling)
        self.lora_alpha, self.lora_dropout = self.alpha, self.dropout
        self.use_rslora = self.scaling == "rslora"
        super().__post_init__()

    @property
    def scale(self) -> float:
        """The factor before B A."""
        return scale_of(self.alpha, self.r, self.scaling)

    def to_dict(self) -> dict[str, Any]:
        """PEFT's own LoRA config, without the names of this package."""
        return {name: value for name, value in super().to_dict().items() if name not in OWN}
