"""LoFiT: find the attention heads that matter, then train one offset vector for each of them.

Paper: "LoFiT: Localized Fine-tuning on LLM Representations", arXiv 2406.01563. The output projection of attention,
y = z Wᵀ + b with W (out, D), receives the outputs z (..., D) of its H heads, D = H d, in head order. LoFiT edits z::

    z ← z + a ∘ z + v,      a (H, d) the heads' relative scales,      v (H, d) their offsets
    ΔW = W diag(a),     b' = b + W v                                  merged, exactly; b is created where there is none

* Phase ``select``: a trains for all heads of all layers, with l1 · Σ|a| in the loss. A head's score is ‖a_j‖₂ / √d
  (the paper's ‖a_j‖₂ where all heads have one width); the K best of each tower win, ties going to the earlier layer
  and head. Then a is dropped.
* Phase ``offsets``: v trains for the chosen heads only, K d numbers in all, from the original model.

What remains is one constant vector per layer added to the residual stream, within span(W[:, chosen slots]). It changes
biases, so there is no plain-LoRA form: merge it instead. Several active adapters add their edits.

Both a and v start from N(0, init_std²), 1e-3 in the public code: the start differs from the base by about that much;
``init_std: 0`` starts at the base exactly. All tokens are edited, or with ``tokens: cls`` the class token of a vision
tower alone, which no weight can hold. Where a model normalises between heads and projection, the edit comes after the
norm. Learning rates are far above LoRA's.

The scores of all heads are saved with the adapter: with ``ranking_from`` another K chooses by them, without a phase
``select``.

Reconstructed: l1 and the learning rates for vision models, and the choice per tower (the paper has one).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import UserError, near_miss
from ..registry import register
from .base import MethodConfig, WeightUpdate
from .tuner import AdapterLayer, register_method, wrap_linear

TOKENS = ("all", "cls")
RANKINGS = ("top", "bottom", "random")
# What attention modules call their number of heads, and their output projection.
HEADS = ("num_heads", "num_attention_heads", "n_heads")
OUTPUTS = ("out_proj", "proj", "o_proj", "o", "dense", "projection_layer")


@register(
    "adapter",
    "lofit",
    summary="one trained offset for each of the few attention heads that matter; modules: [o]",
    paper="arXiv 2406.01563",
)
@dataclass
class LofitConfig(MethodConfig):
    """Options of LoFiT.

    Attributes:
        selection: layer name -> chosen heads, filled in by the phase ``offsets``. Where it is given from the start,
            there is no selection phase.
        scores: layer name -> the score of each head, filled in by the phase ``offsets``. Where they are given without
            a selection, they choose the heads, and there is no selection phase either.

    Raises:
        UserError: a value out of range or an unknown `ranking`.
    """

    exposed: ClassVar[tuple[str, ...]] = (
        *("heads", "per_tower", "ranking", "ranking_from", "tokens", "l1"),
        *("init_std", "select_lr", "offset_lr", "head_dim"),
    )
    places: ClassVar[tuple[str, ...]] = ("o",)
    # What every update asks of its config.
    scale: ClassVar[float] = 1.0
    dropout: ClassVar[float] = 0.0

    heads: int | float = field(default=0.03, metadata={"help": "number of heads (3) or share of all heads (0.03)"})
    per_tower: bool = field(default=True, metadata={"help": "choose that many in each tower, not in all together"})
    ranking: Literal["top", "bottom", "random"] = field(
        default="top", metadata={"help": "best, worst or random heads; the latter two are controls"}
    )
    ranking_from: str | None = field(
        default=None, metadata={"help": "folder of a saved lofit adapter: its scores choose the heads"}
    )
    tokens: Literal["all", "cls"] = field(
        default="all", metadata={"help": "tokens that are edited: `all`, or the class token (`cls`)"}
    )
    l1: float = field(default=1e-3, metadata={"help": "weight of Σ|a| in the loss of the selection phase", "ge": 0})
    init_std: float = field(default=1e-3, metadata={"help": "standard deviation of a and v at the start", "ge": 0})
    select_lr: float = field(default=5e-3, metadata={"help": "learning rate of the selection phase"})
    offset_lr: float = field(default=1e-2, metadata={"help": "learning rate of the offset phase"})
    head_dim: int | None = field(default=None, metadata={"help": "width of a head, where the model does not say"})
    selection: dict[str, list[int]] | None = None
    scores: dict[str, list[float]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranking_from is not None:
            self.scores = saved_scores(Path(self.ranking_from).expanduser())
            self.ranking_from = None  # no path goes into a file
        self.select_first = self.selection is None and self.scores is None
        self.head_counts: dict[str, int] = {}
        if self.tokens not in TOKENS:
            raise UserError(f"unknown tokens '{self.tokens}'.{near_miss(self.tokens, TOKENS)} Known: all, cls.")
        if self.ranking not in RANKINGS:
            hint = near_miss(self.ranking, RANKINGS)
            raise UserError(f"unknown ranking '{self.ranking}'.{hint} Known: {', '.join(RANKINGS)}.")
        if self.heads <= 0 or (isinstance(self.heads, float) and self.heads > 1):
            raise UserError(f"heads = {self.heads}: give a number of heads such as 4, or a share up to 1.0.")
        for name in ("l1", "init_std"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} = {getattr(self, name)}: it must be 0 or more.")

    def prepare(self, weights: Mapping[str, Tensor]) -> None:
        """Choose by scores that were given, and refuse chosen heads of layers that are not adapted.

        Raises:
            UserError: there are some, or the scores are those of other layers.
        """
        if self.selection is None and self.scores is not None:
            if self.scores.keys() != weights.keys():
                odd = sorted(self.scores.keys() ^ weights.keys())
                raise UserError(f"the scores are of other layers (the first is '{odd[0]}'): adapt the same ones.")
            self.selection = choose(
                {name: torch.tensor(self.scores[name], dtype=torch.double) for name in weights}, self
            )
        for name in self.selection or {}:
            if name not in weights:
                raise UserError(f"selection: '{name}' is not adapted.{near_miss(name, weights)}")

    def check_backbone(self, backbone: Any, towers: Sequence[str]) -> None:
        """Refuse ``tokens: cls`` where the first token is no class token.

        Raises:
            UserError: a tower other than the vision tower, or one without prefix tokens.
        """
        if self.tokens == "cls" and (set(towers) != {"vision"} or not backbone.token_layout().prefix):
            raise UserError("tokens = cls needs a vision tower with a class token alone: set towers: [vision], or all.")

    def inspect(self, name: str, module: nn.Module, parent: nn.Module) -> None:
        """Note how many heads the layer's input has.

        Raises:
            UserError: it is not the output projection of an attention, or nothing says how many heads there are.
        """
        width = getattr(module, "in_features", None)
        if name.rpartition(".")[2] not in OUTPUTS or width is None:
            raise UserError(f"lofit edits what heads give to their output projection, not '{name}': use modules=[o].")
        counts = [getattr(parent, attribute) for attribute in HEADS if hasattr(parent, attribute)]
        if not counts and hasattr(parent, "head_dim"):
            counts = [width // parent.head_dim]
        if self.head_dim:
            counts = [width // self.head_dim]
        if not counts or width % counts[0]:
            raise UserError(f"the input of '{name}', {width} wide, has no known number of heads: set head_dim.")
        odd = [head for head in (self.selection or {}).get(name, []) if not 0 <= head < counts[0]]
        if odd:
            raise UserError(f"selection: '{name}' has heads 0 to {counts[0] - 1}, not {odd[0]}.")
        self.head_counts[name] = counts[0]

    def phases(self) -> dict[str, dict[str, Any]]:
        """Return ``select`` and ``offsets``, or ``offsets`` alone for given heads; without weight decay."""
        rates = ({"select": self.select_lr} if self.select_first else {}) | {"offsets": self.offset_lr}
        return {phase: {"lr": lr, "weight_decay": 0.0} for phase, lr in rates.items()}

    def begin_phase(self, updates: Mapping[str, WeightUpdate], phase: str) -> None:
        """Give all heads scales, or the chosen ones offsets."""
        if phase == "select":
            self.selection = None
            for update in updates.values():
                update.scale_heads(self.init_std)
        elif any(update.a is not None for update in updates.values()):
            scores = {update.name: update.scores() for update in updates.values()}
            self.scores = {name: values.tolist() for name, values in scores.items()}
            self.selection = choose(scores, self)
            for update in updates.values():
                update.offset_heads(self.selection.get(update.name, []), self.init_std)


def saved_scores(folder: Path) -> dict[str, list[float]]:
    """Read the scores of all heads from the folder of a saved LoFiT adapter.

    Raises:
        UserError: there is none, or it was saved without a selection of its own.
    """
    try:
        scores = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["scores"]
    except (OSError, ValueError, KeyError, TypeError):
        scores = None
    if not isinstance(scores, dict):
        raise UserError(f"ranking_from: '{folder}' holds no lofit adapter with scores: name one that selected heads.")
    return {str(name): [float(value) for value in values] for name, values in scores.items()}


def choose(scores: Mapping[str, Tensor], config: LofitConfig) -> dict[str, list[int]]:
    """Choose the heads: layer name -> indices, ascending, for layers that have any.

    Args:
        scores: layer name -> (H,), in the order of the model.
        config: says how many, of which end of the ranking, and whether per tower.

    Raises:
        UserError: there are not so many heads.
    """
    towers: dict[str, list[tuple[str, int, float]]] = {}
    for name, values in scores.items():
        tower = re.split(r"\.\d+\.", name)[0] if config.per_tower else "the model"
        towers.setdefault(tower, []).extend((name, head, value) for head, value in enumerate(values.tolist()))
    selection: dict[str, list[int]] = {}
    for tower, heads in towers.items():
        count = max(1, round(config.heads * len(heads))) if isinstance(config.heads, float) else config.heads
        if count > len(heads):
            raise UserError(f"heads = {count}: '{tower}' has only {len(heads)} heads that are adapted.")
        if config.ranking == "random":
            heads = [heads[index] for index in torch.randperm(len(heads)).tolist()]
        else:
            sign = -1 if config.ranking == "top" else 1
            heads = sorted(heads, key=lambda head: sign * head[2])  # stable: ties keep the model's order
        for name, head, _ in heads[:count]:
            selection.setdefault(name, []).append(head)
    return {name: sorted(heads) for name, heads in selection.items()}


class Lofit(WeightUpdate):
    """Scales a (H, d) of all heads, or offsets v (K, d) of the heads (K,), K being this layer's share."""

    no_decay = ("a", "v")

    like: Tensor
    heads: Tensor | None

    def __init__(self, weight: Tensor, config: LofitConfig, name: str) -> None:
        super().__init__(config)
        self.name, self.count, self.l1 = name, config.head_counts[name], config.l1
        self.tokens = config.tokens
        self.width = weight.shape[1] // self.count
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.register_buffer("like", torch.empty(0, device=weight.device, dtype=wide), persistent=False)
        self.a = self.v = None
        self.register_buffer("heads", None)
        if config.selection is None:
            self.scale_heads(config.init_std)
        else:
            self.offset_heads(config.selection.get(name, []), config.init_std)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the trained tensors, which a layer without a chosen head has none of."""
        return self.like.dtype

    def scale_heads(self, std: float) -> None:
        """Train new scales of all heads, and no offsets."""
        self.v = self.heads = None
        self.a = nn.Parameter(self.like.new_empty(self.count, self.width).normal_(std=std))

    def offset_heads(self, heads: list[int], std: float) -> None:
        """Train new offsets of `heads`, and no scales."""
        self.a = self.v = self.heads = None
        if heads:
            self.v = nn.Parameter(self.like.new_empty(len(heads), self.width).normal_(std=std))
            self.heads = torch.tensor(heads, device=self.like.device)

    def scores(self) -> Tensor:
        """Compute ‖a_j‖₂ / √d of each head (H,)."""
        return self.a.detach().norm(dim=1) / math.sqrt(self.width)

    def scales(self) -> Tensor | None:
        """Return a (D,) in the order of the projection's inputs; None for zero."""
        return None if self.a is None else self.a.flatten()

    def offsets(self) -> Tensor | None:
        """Return v (D,) in the order of the projection's inputs; None for zero."""
        if self.v is None:
            return None
        return self.v.new_zeros(self.count, self.width).index_copy(0, self.heads, self.v).flatten()

    def forward(self, z: Tensor) -> Tensor:
        """Compute what is added to the projection's *input*: (..., D) -> (..., D), (B, N, D) for ``tokens: cls``."""
        a, v = self.scales(), self.offsets()
        edit = torch.zeros_like(z) if a is None else a * z
        edit = edit if v is None else edit + v
        if self.tokens == "all":
            return edit
        return nn.functional.pad(edit[:, :1], (0, 0, 0, z.shape[1] - 1))

    def export_factors(self) -> None:
        """Return None: scales have no factors.

        Raises:
            UserError: the offsets change a bias.
        """
        if self.v is not None:
            raise UserError("lofit changes biases, which a plain LoRA does not hold: merge it instead.")

    def extra_losses(self) -> dict[str, Tensor]:
        """Compute l1 · Σ|a| while heads are being selected."""
        selecting = self.a is not None and self.a.requires_grad and self.l1
        return {"heads": self.l1 * self.a.abs().sum()} if selecting else {}

    def facts(self) -> dict[str, float]:
        """Count the heads and those with an offset, and find the largest norm of an offset."""
        norms = [0.0] if self.v is None else self.v.detach().norm(dim=1).tolist()
        return {"heads": self.count, "chosen": 0 if self.v is None else len(self.v), "largest_offset": max(norms)}


class LofitLayer(AdapterLayer):
    """An output projection whose input is edited."""

    serves_rows = False
    _kept_bias: Tensor | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the projection of the edited input: (..., D) -> (..., out)."""
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        edits = [self.weight_update[name] for name in self.active_adapters if name in self.weight_update]
        for update in edits:
            update.remind()
        total = sum(update(self._cast_input_dtype(x, update.dtype)) for update in edits)
        return self.base_layer((x + total).to(x.dtype), *args, **kwargs)

    def check_mergeable(self, name: str) -> None:
        """Refuse edits of the class token alone."""
        active = [self.weight_update[each] for each in self.active_adapters if each in self.weight_update]
        if any(update.tokens == "cls" for update in active):
            raise UserError(f"'{name}' edits the class token alone, which no weight can hold: keep the adapter.")

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """Compute ΔW = W diag(a)."""
        update = self.weight_update[adapter]
        weight = self.oriented(self._unmerged()).to(update.dtype)
        scales = update.scales()
        return self.oriented(torch.zeros_like(weight) if scales is None else weight * scales)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Scale the weight's columns, and add W v to the bias, which is created where there is none."""
        first, bias = not self.merged, self.base_layer.bias
        super().merge(safe_merge, adapter_names)
        if not self.merged:
            return
        if first:
            self._kept_bias = None if bias is None else bias.detach().clone()
        weight = self.oriented(self._unmerged())
        shift = 0 if self._kept_bias is None else self._kept_bias
        for name in self.merged_adapters:
            offsets = self.weight_update[name].offsets()
            shift = shift if offsets is None else shift + weight.to(offsets.dtype) @ offsets
        if isinstance(shift, Tensor):
            if safe_merge and not shift.isfinite().all():
                self.unmerge()
                raise UserError(f"adapter {', '.join(self.active_adapters)} has offsets that are not finite.")
            self._set_bias(shift.to(weight.dtype))

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put weight and bias back as they were, bit for bit."""
        merged = self.merged
        super().unmerge()
        if merged:
            self._set_bias(self._kept_bias)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return False: a LoRA has no place for the bias."""
        return False

    def _unmerged(self) -> Tensor:
        return self.base_layer.weight if self._kept_weight is None else self._kept_weight

    def _set_bias(self, value: Tensor | None) -> None:
        if value is None:
            self.base_layer.bias = None
        elif self.base_layer.bias is None:
            self.base_layer.bias = nn.Parameter(value, requires_grad=False)
        else:
            self.base_layer.bias.copy_(value)


def wrap_projection(module: nn.Module) -> type[LofitLayer] | None:
    """Return :class:`LofitLayer` for linears, None for anything else."""
    return LofitLayer if wrap_linear(module) else None


register_method("lofit", LofitConfig, Lofit, wrap_projection)
