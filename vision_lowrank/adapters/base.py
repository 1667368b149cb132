"""What a method is: a config dataclass and a :class:`WeightUpdate`, the module that one adapter trains on one linear.

With the linear's weight W (out, in), x (..., in)::

    y = x Wᵀ + b + Σ_active h(x),        h(x) = scale · (drop(x) Aᵀ) Bᵀ = drop(x) ΔWᵀ,   ΔW = scale · B A

with A (r, in) and B (out, r) from :meth:`WeightUpdate.factors`. A method without factors overrides ``delta`` and
``forward``. Several adapters, switching, disabling, merging, saving and conversion to LoRA are written once, in
:mod:`vision_lowrank.adapters.tuner`, so a method's file holds its mathematics and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from peft import PeftConfig
from torch import Tensor, nn

from ..errors import UserError, near_miss

SCALINGS = ("rslora", "lora")


def scale_of(alpha: float, r: int, scaling: str) -> float:
    """The factor before B A: alpha / sqrt(r) for ``rslora`` (arXiv 2312.03732), alpha / r for ``lora``."""
    return alpha / math.sqrt(r) if scaling == "rslora" else alpha / r


def check_common(r: int, dropout: float, scaling: str) -> None:
    """Refuse values that no method of ours can use.

    Raises:
        UserError: `r` below 1, `dropout` outside [0, 1), or an unknown `scaling`.
    """
    if r < 1:
        raise UserError(f"r = {r}: the rank must be at least 1.")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout = {dropout}: it is the probability of dropping an input, from 0 up to below 1.")
    if scaling not in SCALINGS:
        raise UserError(f"unknown scaling '{scaling}'.{near_miss(scaling, SCALINGS)} Known: {', '.join(SCALINGS)}.")


def check_rank(r: int, largest: int, name: str, why: str) -> None:
    """Refuse a rank that a layer has no room for.

    Raises:
        UserError: `r` > `largest`; the message names the layer, the reason and the largest rank allowed.
    """
    if r > largest:
        raise UserError(f"r = {r} is too large for '{name}', {why}: the largest r allowed there is {largest}.")


@dataclass
class AdapterConfig(PeftConfig):
    """What every config of ours has; PEFT accepts it in ``get_peft_model`` directly."""

    method: ClassVar[str]

    r: int = field(default=2, metadata={"help": "rank"})
    alpha: float = field(default=1.0, metadata={"help": "numerator of the scale"})
    dropout: float = field(default=0.0, metadata={"help": "dropout on the input of the adapter; the recipe has 0.25"})
    scaling: Literal["rslora", "lora"] = field(
        default="rslora", metadata={"help": "`rslora`: alpha / sqrt(r); `lora`: alpha / r"}
    )
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "names, or a regular expression"})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "names never adapted"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules trained and saved in full"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = self.method.upper()
        check_common(self.r, self.dropout, self.scaling)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)

    @property
    def scale(self) -> float:
        """The factor before B A."""
        return scale_of(self.alpha, self.r, self.scaling)


class Factors(NamedTuple):
    """ΔW = scale · B A with A (r, in) and B (out, r)."""

    A: Tensor
    B: Tensor
    scale: float


class WeightUpdate(nn.Module):
    """What one adapter holds and adds on one linear. Subclasses create parameters and give ``factors`` or ``delta``.

    Every parameter is trained; what is frozen is a buffer (``persistent=False`` keeps it out of checkpoints).
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.scale = config.scale
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the trained tensors: float32 or wider."""
        return next(self.parameters()).dtype

    def factors(self) -> Factors | None:
        """A (r, in), B (out, r) and the scale, differentiable; None where ΔW has no such form."""
        raise NotImplementedError

    def delta(self) -> Tensor:
        """ΔW (out, in), scale included."""
        A, B, scale = self.factors()
        return scale * (B @ A)

    def forward(self, x: Tensor) -> Tensor:
        """What the adapter adds: (..., in) -> (..., out)."""
        A, B, scale = self.factors()
        return nn.functional.linear(nn.functional.linear(self.dropout(x), A) * scale, B)

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Own tensors -> what a checkpoint holds."""
        return state

    def unpack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a checkpoint holds -> own tensors: the inverse of :meth:`pack`."""
        return state

    def facts(self) -> dict[str, float]:
        """Numbers worth reporting about this layer."""
        return {}
