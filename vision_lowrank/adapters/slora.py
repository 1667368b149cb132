"""SLoRA (structured LoRA) of NLoRA, and IntTune: LoRA with a small matrix between the factors.

Paper: "NLoRA: Nyström-Initiated Low-Rank Adaptation for Large Language Models", arXiv 2502.14482::

    ΔW = s · B N A,      A (r, in) and N (r, r) Kaiming-uniform,      B (out, r) = 0,      s = alpha / r

``train: all`` trains all three: r (in + out) + r² parameters per layer, ΔW = 0 at the start. ``train: middle`` is
IntTune: only N trains, r² parameters per layer, and A, B and N start as the blocks of W that the initialiser
``nystrom`` takes; A and B are frozen.

With that initialiser ``train: all`` is NLoRA. NLoRA and IntTune start away from the base by design.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import UserError, near_miss
from ..registry import register
from .base import LoraScaledConfig
from .three_factor import ThreeFactor, Trains, nystrom_blocks
from .tuner import register_method

TRAINS = {"all": Trains(True, True, True), "middle": Trains(A=False, core=True, B=False)}


@register(
    "adapter",
    "slora",
    summary="LoRA with a trained r x r matrix between the factors; with nystrom it is NLoRA or IntTune",
    paper="arXiv 2502.14482",
)
@dataclass
class SloraConfig(LoraScaledConfig):
    """Options of SLoRA.

    Raises:
        UserError: unknown `train`.
    """

    r: int = field(default=8, metadata={"help": "rank", "ge": 1})
    alpha: float = field(default=8.0, metadata={"help": "numerator of the scale"})
    train: Literal["all", "middle"] = field(
        default="all", metadata={"help": "`all` three factors, or the `middle` one only (IntTune)"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train not in TRAINS:
            raise UserError(f"unknown train '{self.train}'.{near_miss(self.train, TRAINS)} Known: all, middle.")


class Slora(ThreeFactor):
    """A, core and B, all trained or only the core."""

    def __init__(self, weight: Tensor, config: SloraConfig, name: str) -> None:
        super().__init__(weight, config, name, TRAINS[config.train])
        with torch.no_grad():
            for factor in (self.A, self.core):
                nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
            if config.train == "middle":
                self.start_from(nystrom_blocks(weight.to(self.A), config.r))


register_method("slora", SloraConfig, Slora)
