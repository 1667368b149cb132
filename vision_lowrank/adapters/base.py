"""What a method is: a config dataclass and a :class:`WeightUpdate`, the module that one adapter trains on one linear.

With the linear's weight W (out, in), x (..., in)::

    y = x Wᵀ + b + Σ_active h(x),        h(x) = scale · (drop(x) Aᵀ) Bᵀ = drop(x) ΔWᵀ,   ΔW = scale · B A

with A (r, in) and B (out, r) from :meth:`WeightUpdate.factors`. A method without factors overrides ``delta`` and
``forward``. Several adapters, switching, disabling, merging, saving and conversion to LoRA are written once, in
:mod:`vision_lowrank.adapters.tuner`, so a method's file holds its mathematics and nothing else.

An update that starts at B_0 A_0 ≠ 0 without moving the output carries an *offset* beside W, which is never altered::

    ΔW = scale · (B A - B_0 A_0) = scale · [B, -B_0] [A; A_0]

so that disabling gives the base bit for bit, and the plain-LoRA export, of up to twice the rank, is exact.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from peft import PeftConfig
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from ..config.adapter import PLACES
from ..errors import UserError, near_miss
from ..trained import TrainedPart

SCALINGS = ("rslora", "lora")
SCALING_HELP = "`rslora`: alpha / sqrt(r); `lora`: alpha / r"

Number = TypeVar("Number", int, float)


def scale_of(alpha: float, r: int, scaling: str) -> float:
    """Compute the factor before B A: alpha / sqrt(r) for ``rslora`` (arXiv 2312.03732), alpha / r for ``lora``."""
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


def of_pattern(pattern: Mapping[str, Number], name: str, default: Number) -> Number:
    """Return what a pattern of PEFT's, such as a ``rank_pattern``, gives the layer called `name`, else `default`."""
    return pattern.get(get_pattern_key(list(pattern), name), default)


class MethodName(str):
    """A ``peft_type`` of ours: a text with the ``value`` and ``name`` of PEFT's own, which are members of an enum."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The text itself."""
        return str.__str__(self)

    name = value

    def __str__(self) -> str:
        """Return ``PeftType.…``, as members of that enum do: PEFT's status of a model takes it apart."""
        return f"PeftType.{self.value}"

    def __format__(self, spec: str) -> str:
        """Write the text itself into messages."""
        return format(self.value, spec)


@dataclass
class MethodConfig(PeftConfig):
    """What every config of ours has; PEFT accepts it in ``get_peft_model`` directly.

    A method may train in several *phases*, each a stage of the engine: :meth:`phases` names them, and
    :meth:`begin_phase` gets the method's updates of all layers ready for one.

    Attributes:
        places: logical names of the modules that the method is for, unless the user names others.
        beyond_linears: logical names of modules that the method adapts although they are no linears: ``mlp``,
            ``attention``, ``block``.
    """

    method: ClassVar[str]
    places: ClassVar[tuple[str, ...]] = PLACES
    beyond_linears: ClassVar[tuple[str, ...]] = ()

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "names, or a regular expression"})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "names never adapted"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules trained and saved in full"})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "numbers of layers, as PEFT's"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "what their numbers follow"})
    bias: str = field(default="none", metadata={"help": "base biases that train too: `none`, `all`, `METHOD_only`"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MethodName(self.method.upper())
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if self.bias not in (known := ("none", "all", f"{self.method}_only")):
            raise UserError(f"unknown bias '{self.bias}'.{near_miss(self.bias, known)} Known: {', '.join(known)}.")

    def for_layer(self, name: str) -> MethodConfig:
        """Return the config of one layer."""
        return self

    def prepare(self, weights: Mapping[str, Tensor]) -> None:
        """Take in all target weights, layer name -> (out, in), before the first layer is made."""

    def check_backbone(self, backbone: Any, towers: Sequence[str]) -> None:
        """Refuse a backbone, or towers of it, that the method cannot adapt as it is set; ``attach`` asks first."""

    def inspect(self, name: str, module: nn.Module, parent: nn.Module) -> None:
        """Look at each target and the module that holds it, before the target is wrapped."""

    def phases(self) -> dict[str, dict[str, Any]]:
        """Return the names of the training phases, in order, with the engine settings that each overrides."""
        return {"train": {}}

    def begin_phase(self, updates: Mapping[str, WeightUpdate], phase: str) -> None:
        """Get ready for a phase before it starts or resumes, with the update of every layer by name."""


@dataclass
class AdapterConfig(MethodConfig):
    """Base of all configs with a rank.

    Attributes:
        initializer: name of the initialiser that gave the start; set by :func:`vision_lowrank.attach`.
        offset: whether the updates carry an offset; set by :func:`vision_lowrank.attach`.
    """

    r: int = field(default=2, metadata={"help": "rank", "ge": 1})
    alpha: float = field(default=1.0, metadata={"help": "numerator of the scale"})
    dropout: float = field(
        default=0.0, metadata={"help": "dropout on the input of the adapter; the recipe has 0.25", "ge": 0, "lt": 1}
    )
    scaling: Literal["rslora", "lora"] = field(default="rslora", metadata={"help": SCALING_HELP})
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "end of a layer's name, or a regular expression of it -> its own r"}
    )
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata={"help": "likewise its own alpha"})
    initializer: str | None = field(default=None, metadata={"help": "set by attach"})
    offset: bool = field(default=False, metadata={"help": "set by attach"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_common(self.r, self.dropout, self.scaling)

    def for_layer(self, name: str) -> AdapterConfig:
        """Return the config with the rank and alpha that the patterns give the layer called `name`."""
        r = of_pattern(self.rank_pattern, name, self.r)
        alpha = of_pattern(self.alpha_pattern, name, self.alpha)
        if (r, alpha) == (self.r, self.alpha):
            return self
        own = copy.copy(self)
        own.r, own.alpha = r, alpha
        copy.copy(own).__post_init__()  # for its checks: what else it does to a config has been done
        return own

    @property
    def scale(self) -> float:
        """The factor before B A."""
        return scale_of(self.alpha, self.r, self.scaling)


@dataclass
class LoraScaledConfig(AdapterConfig):
    """Base of configs whose papers have LoRA's own scale, alpha / r."""

    scaling: Literal["rslora", "lora"] = field(default="lora", metadata={"help": SCALING_HELP})


class Factors(NamedTuple):
    """ΔW = scale · B A with A (r, in) and B (out, r)."""

    A: Tensor
    B: Tensor
    scale: float


def stack(factors: list[Factors]) -> Factors:
    """Stack updates into one, their sum, of the summed rank."""
    A, B, scales = zip(*factors, strict=True)
    return Factors(torch.cat(A), torch.cat([b * scale for b, scale in zip(B, scales, strict=True)], dim=1), 1.0)


class Start(NamedTuple):
    """Where an initialiser lets ΔW begin: scale · B core A with A (r, in), core (r, r) and B (out, r)."""

    A: Tensor
    core: Tensor
    B: Tensor


class WeightUpdate(TrainedPart):
    """What one adapter holds and adds on one linear. Subclasses create tensors and give ``own_factors`` or ``delta``.

    Parameters are trained, buffers are frozen; ``persistent=False`` keeps a buffer out of checkpoints. What it asks of
    the training loop, it says as a :class:`~vision_lowrank.trained.TrainedPart`.

    Attributes:
        shares_A: A is frozen, so that the offset needs only B_0 and the rank does not double.
    """

    checkpoint_whole: ClassVar[bool] = True
    shares_A: bool = False

    offset_A: Tensor | None
    offset_B: Tensor | None

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.scale = config.scale
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.register_buffer("offset_A", None)
        self.register_buffer("offset_B", None)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the trained tensors: float32 or wider."""
        return next(self.parameters()).dtype

    def own_factors(self) -> Factors | None:
        """Return A (r, in), B (out, r) and the scale, differentiable, without the offset; None without such a form."""
        return None

    def factors(self) -> Factors | None:
        """Return A, B and the scale of the whole ΔW, offset included: up to twice the rank of :meth:`own_factors`.

        Under autocast too they are computed in their own type: an offset that cancels a rounded product would not.
        """
        own, offset = self.factors_beside_offset()
        if own is None or offset is None:
            return own
        return own._replace(A=torch.cat([own.A, offset[0]]), B=torch.cat([own.B, offset[1]], dim=1))

    def factors_beside_offset(self) -> tuple[Factors | None, tuple[Tensor, Tensor] | None]:
        """Return :meth:`factors` in two parts: what trains, and a frozen A_0 (r_0, in), B_0 (out, r_0) or None."""
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            own = self.own_factors()
            if own is None or self.offset_B is None:
                return own, None
            if self.offset_A is None:
                return own._replace(B=own.B + self.offset_B), None
        return own, (self.offset_A, self.offset_B)

    def export_factors(self) -> Factors | None:
        """Return :meth:`factors` as an export writes them: without directions that a method can drop exactly."""
        return self.factors()

    def start_from(self, start: Start) -> None:
        """Take an initialiser's factors, as far as the method can hold them.

        Raises:
            UserError: the method has no factors to set.
        """
        raise UserError(f"{type(self).__name__} defines its own start: leave the initializer out.")

    @torch.no_grad()
    def hold_output(self) -> None:
        """Carry an offset that makes ΔW zero now."""
        A, B, _ = self.own_factors()
        self.offset_A = None if self.shares_A else A.clone()
        self.offset_B = -B.clone()

    def drop_offset(self) -> None:
        """Carry no offset: ΔW is what the own factors say."""
        self.offset_A = self.offset_B = None

    def delta(self) -> Tensor:
        """Compute ΔW (out, in), scale included."""
        A, B, scale = self.factors()
        return scale * (B @ A)

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the adapter adds: (..., in) -> (..., out)."""
        A, B, scale = self.factors()
        return nn.functional.linear(nn.functional.linear(self.dropout(x), A) * scale, B)

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn own tensors into what a checkpoint holds."""
        return state

    def unpack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn what a checkpoint holds into own tensors: the inverse of :meth:`pack`."""
        return state

    def facts(self) -> dict[str, float]:
        """Return numbers worth reporting about this layer."""
        return {}
