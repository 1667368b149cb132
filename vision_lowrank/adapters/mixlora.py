"""MixLoRA: every MLP becomes a sparse mixture of LoRA experts with a router per token; attention gets ordinary LoRA.

Paper: "MixLoRA: Enhancing Large Language Models Fine-Tuning with LoRA-based Mixture of Experts", arXiv 2404.15159.
An MLP fc1 (h, d), φ (activation, dropout, norm), fc2 (d, h), all frozen, and E experts with pairs A1 (E, r, d),
B1 (E, h, r), A2 (E, r, h), B2 (E, d, r) and s = alpha / r; for a token x (d,) and the router G (E, d), in float32::

    p = softmax(G x);    e_1 … e_k the k likeliest;    w_j = p[e_j] / Σ_i p[e_i]
    a_j = φ(W1 x + b1 + s · B1[e_j] A1[e_j] drop(x))
    y = Σ_j w_j (W2 a_j + b2 + s · B2[e_j] A2[e_j] drop(a_j))

Other targets, the linears of attention, get ordinary LoRA, ΔW = s · B A.
As fc2 is linear and shared, it is applied once, to Σ_j w_j a_j (the reference applies it k times). The low-rank parts
of all experts are computed at once and masked to the chosen ones: no shape depends on the data, an idle expert gets a
zero gradient, and the cost is 2 (E r d + k E r h) products per token beside the MLP's 2 d h. B1 = B2 = 0 at the start,
so that all experts are the MLP itself and the output is the base's.

With k = 1, w = 1 would give the router no gradient. Then w = p[e_1], and the rest 1 - w goes to the frozen MLP, so
that the start is the base's output there too (the switch form y = p F(x) would shrink every MLP).

Balance loss, with f[j, e] the share of tokens whose j-th choice is e, and P[e] the mean of p::

    balance · E · Σ_j Σ_e f[j, e] P[e]        k · balance at perfect balance, E · balance at collapse (k = 2, E = 8)

``aux_scope: layer`` is its mean over layers; ``model`` averages f and P over all layers first, as the reference code
does, so that layers can balance each other. It covers the last training forward of each layer: what gradient
checkpointing computes again is not counted.

Which expert works depends on the input: nothing can be merged or exported. Left out: routing by top-p or with
capacity, and DoRA experts. Reconstructed: the weight for k = 1, and 1e-2 as the paper's coefficient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from timm.layers import Mlp as TimmMlp
from torch import Tensor, nn

from ..errors import UserError, near_miss
from ..registry import register
from .base import LoraScaledConfig, WeightUpdate, check_rank
from .lora import OffsetLora
from .tuner import AdapterLayer, register_method, wrap_linear
from .whole import WholeLayer

SCOPES = ("layer", "model")
ROUTER_STD = 0.02


class Parts(NamedTuple):
    """An MLP as fc1, what lies between, fc2, and what follows."""

    fc1: nn.Linear
    between: tuple[nn.Module, ...]
    fc2: nn.Linear
    after: tuple[nn.Module, ...]


def parts_of(mlp: nn.Module) -> Parts | None:
    """Return the parts of an MLP of timm, open_clip or transformers; None for gated, convolutional and unknown ones."""
    if type(mlp) is TimmMlp:
        parts = Parts(mlp.fc1, (mlp.act, mlp.drop1, mlp.norm), mlp.fc2, (mlp.drop2,))
    elif type(mlp) is nn.Sequential and len(mlp) > 2:
        parts = Parts(mlp[0], tuple(mlp[1:-1]), mlp[-1], ())
    elif {name for name, _ in mlp.named_children()} == {"fc1", "fc2", "activation_fn"}:
        parts = Parts(mlp.fc1, (mlp.activation_fn,), mlp.fc2, ())
    else:
        return None
    linears = [module for module in (parts.fc1, *parts.between, parts.fc2) if wrap_linear(module)]
    return parts if len(linears) == 2 and wrap_linear(parts.fc1) and wrap_linear(parts.fc2) else None


class Routing(NamedTuple):
    """What the balance loss needs of one layer: f (k, E), P (E,) with its gradient, and the number of tokens."""

    chosen: Tensor
    probability: Tensor
    tokens: int


class Ledger(dict[str, Routing]):
    """Layer name -> routing of the last training forward. A copy is empty: routings belong to a graph."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Ledger:
        return Ledger()


def balance_loss(routings: list[Routing], scope: str) -> Tensor:
    """Compute E Σ_j Σ_e f[j, e] P[e]: mean over layers, or of the token-weighted means of f and P."""
    if scope == "model":
        tokens = sum(routing.tokens for routing in routings)
        routings = [
            Routing(
                sum(routing.chosen * (routing.tokens / tokens) for routing in routings),
                sum(routing.probability * (routing.tokens / tokens) for routing in routings),
                tokens,
            )
        ]
    losses = [len(P) * (chosen * P).sum() for chosen, P, _ in routings]
    return torch.stack(losses).mean()


@register(
    "adapter",
    "mixlora",
    summary="LoRA experts with a router in each MLP, plain LoRA elsewhere; modules: [q, k, v, o, mlp]",
    paper="arXiv 2404.15159",
)
@dataclass
class MixLoraConfig(LoraScaledConfig):
    """Options of MixLoRA.

    Raises:
        UserError: a value out of range or an unknown `aux_scope`.
    """

    beyond_linears: ClassVar[tuple[str, ...]] = ("mlp",)
    places: ClassVar[tuple[str, ...]] = ("q", "k", "v", "o", "mlp")

    r: int = field(default=8, metadata={"help": "rank of each expert and of attention's LoRA", "ge": 1})
    alpha: float = field(default=16.0, metadata={"help": "numerator of the scale"})
    experts: int = field(default=8, metadata={"help": "number of experts E in each MLP", "ge": 1})
    top_k: int = field(default=2, metadata={"help": "number of experts k that a token uses", "ge": 1})
    balance: float = field(default=1e-2, metadata={"help": "weight of the balance loss", "ge": 0})
    aux_scope: Literal["layer", "model"] = field(
        default="layer", metadata={"help": "balance within each layer, or over all layers together"}
    )
    jitter: float = field(
        default=0.0, metadata={"help": "training multiplies an MLP's input by 1 ± this much", "ge": 0, "lt": 1}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ledger = Ledger()
        if self.experts < 1 or not 1 <= self.top_k <= self.experts:
            raise UserError(f"top_k = {self.top_k} of experts = {self.experts}: give 1 ≤ top_k ≤ experts.")
        if not self.balance >= 0 or not 0 <= self.jitter < 1:
            raise UserError(f"balance = {self.balance}, jitter = {self.jitter}: 0 or more, and jitter below 1.")
        if self.aux_scope not in SCOPES:
            hint = near_miss(self.aux_scope, SCOPES)
            raise UserError(f"unknown aux_scope '{self.aux_scope}'.{hint} Known: {', '.join(SCOPES)}.")

    def prepare(self, weights: Mapping[str, Tensor]) -> None:
        """Refuse linears inside a targeted MLP, and a choice of linears only.

        Raises:
            UserError: one of these.
        """
        self.ledger = Ledger()
        targets = self.target_modules if isinstance(self.target_modules, set) else set()
        for name in weights:
            holders = [target for target in targets if f".{target}." in f".{name}"]
            if holders:
                raise UserError(f"'{name}' lies inside '{holders[0]}', whose experts adapt it: leave one of them out.")
        if targets and all(any(f".{name}".endswith(f".{target}") for name in weights) for target in targets):
            raise UserError("mixlora puts its experts on whole MLPs, and none is chosen: add mlp to modules.")

    def inspect(self, name: str, module: nn.Module, parent: nn.Module) -> None:
        """Refuse modules that are neither a linear nor an MLP of a known kind.

        Raises:
            UserError: such a module.
        """
        if not isinstance(module, AdapterLayer) and wrap_part(module) is None:
            raise UserError(
                f"mixlora cannot adapt '{name}', a {type(module).__name__}: its experts need an MLP of two linears "
                "with an activation between, without gate: choose another tower, or lora for this one."
            )


class MixLora(WeightUpdate):
    """Router (E, d) and the experts' factors on one MLP, all trained."""

    no_decay = ("router",)

    load: Tensor
    entropy: Tensor

    def __init__(self, parts: Parts, config: MixLoraConfig, name: str) -> None:
        super().__init__(config)
        hidden, width = parts.fc1.weight.shape
        check_rank(config.r, min(hidden, width), name, f"an MLP of {width} and {hidden} features")
        self.name, self.ledger = name, config.ledger
        self.top_k, self.jitter = config.top_k, config.jitter
        self.balance, self.aux_scope = config.balance, config.aux_scope
        experts, r, weight = config.experts, config.r, parts.fc1.weight
        like = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        self.router = nn.Parameter(torch.randn(experts, width, **like) * ROUTER_STD)
        for number, (size_in, size_out) in enumerate(((width, hidden), (hidden, width)), start=1):
            bound = 1 / math.sqrt(size_in)  # Kaiming-uniform with a = sqrt(5), as for one LoRA
            A = torch.empty(experts, r, size_in, **like).uniform_(-bound, bound)
            self.register_parameter(f"A{number}", nn.Parameter(A))
            self.register_parameter(f"B{number}", nn.Parameter(torch.zeros(experts, size_out, r, **like)))
        self.register_buffer("load", torch.zeros(experts, **like), persistent=False)
        self.register_buffer("entropy", torch.zeros((), **like), persistent=False)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Route tokens: x (N, d) -> weights (N, k) and one-hot choices (N, k, E)."""
        with torch.autocast(x.device.type, enabled=False):
            p = (x.to(self.dtype) @ self.router.T).softmax(dim=-1)
            weights, chosen = p.topk(self.top_k, dim=-1)
            if self.top_k > 1:
                weights = weights / weights.sum(dim=-1, keepdim=True)
            choices = nn.functional.one_hot(chosen, len(self.router)).to(p.dtype)
            shares, mean = choices.mean(dim=0), p.mean(dim=0)
        if self.training and torch.is_grad_enabled() and not _in_backward():
            self.ledger[self.name] = Routing(shares, mean, len(x))
        with torch.no_grad():
            self.load.copy_(shares.sum(dim=0))
            self.entropy.copy_(-(p * p.clamp_min(1e-30).log()).sum(dim=-1).mean())
        return weights, choices

    def mix(self, x: Tensor, parts: Parts) -> Tensor:
        """Compute the mixture on an MLP: x (..., d) -> (..., d), before what follows fc2."""
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        if self.training and self.jitter:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        weights, choices = self.route(x)
        mask = choices.repeat_interleave(self.A1.shape[1], dim=-1)  # (N, k, E r)
        base = parts.fc1(x)
        down = nn.functional.linear(self.dropout(x.to(self.dtype)), self.A1.flatten(0, 1))
        low_rank = nn.functional.linear(down[:, None] * mask, _joined(self.B1)) * self.scale
        a = _apply(parts.between, (base[:, None] + low_rank).to(base.dtype))  # (N, k, h)
        weighted = (weights[..., None] * a).sum(dim=1)
        if self.top_k == 1:
            weighted = weighted + (1 - weights) * _apply(parts.between, base)
        down = nn.functional.linear(self.dropout(a.to(self.dtype)), self.A2.flatten(0, 1))
        mixed = (down * mask * weights[..., None]).sum(dim=1)  # (N, E r)
        y = parts.fc2(weighted.to(base.dtype))
        y = y + nn.functional.linear(mixed, _joined(self.B2)) * self.scale
        return y.to(base.dtype).reshape(shape)

    def extra_losses(self) -> dict[str, Tensor]:
        """Compute the balance loss of all layers that ran, given by the first one asked; each forward counts once."""
        routings = list(self.ledger.values())
        self.ledger.clear()
        return {"balance": self.balance * balance_loss(routings, self.aux_scope)} if routings and self.balance else {}

    def facts(self) -> dict[str, float]:
        """Return the last forward's share of tokens for each expert (their sum is k) and the router's mean entropy."""
        loads = {f"load_{expert}": float(load) for expert, load in enumerate(self.load)}
        return loads | {"entropy": float(self.entropy), "largest_entropy": math.log(len(self.load))}


class MixLoraLayer(WholeLayer):
    """An MLP whose active adapter routes its tokens through experts."""

    no_weight = "routes each token to experts of its own, which no weight can hold"

    def sizes(self) -> tuple[int, int]:
        """Return the numbers of features out and in."""
        parts = parts_of(self.base_layer)
        return parts.fc2.out_features, parts.fc1.in_features

    def make_update(self, config: MixLoraConfig, key: str) -> MixLora:
        """Build the router and the experts."""
        return MixLora(parts_of(self.base_layer), config, key)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the MLP with its experts: (..., d) -> (..., d)."""
        experts: MixLora | None = self.working()
        if experts is None:
            return self.base_layer(x, *args, **kwargs)
        parts = parts_of(self.base_layer)
        return _apply(parts.after, experts.mix(x, parts))


def wrap_part(module: nn.Module) -> type[AdapterLayer] | None:
    """Return :class:`MixLoraLayer` for MLPs, plain LoRA's layer for linears, None for anything else."""
    return MixLoraLayer if parts_of(module) else wrap_linear(module)


def _joined(B: Tensor) -> Tensor:
    """Join the experts' factors: (E, out, r) -> (out, E r)."""
    return B.transpose(0, 1).flatten(1)


def _apply(modules: tuple[Callable[[Tensor], Tensor], ...], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _in_backward() -> bool:
    """Tell whether gradient checkpointing is computing a forward again: its results must not be counted or kept."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


register_method("mixlora", MixLoraConfig, OffsetLora, wrap_part)
