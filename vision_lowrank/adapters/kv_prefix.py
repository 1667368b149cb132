"""Prefix tuning: learned keys and values that every token of every block may attend to.

Papers: "Prefix-Tuning", arXiv 2101.00190; "P-Tuning v2", arXiv 2110.07602, whose form this is, without the MLP that
computes the prefix. One attention has q (L, D), k and v (S, D), cut into H heads of width d; Pk, Pv (p, D) train, cut
into the same heads, and everything else is frozen::

    y_h = softmax(q_h [Pk_h; k_h]ᵀ · scale) [Pv_h; v_h]          2 p D numbers per block, queries unchanged

With c the softmax mass that falls on the prefix, y = (1 - c) attn(q, k, v) + c attn(q, Pk, Pv): the start takes mass
from the picture and is not the base model. With ``zero_init_gate`` each part has its own softmax, after LLaMA-Adapter
(arXiv 2303.16199), and a gate g (H,) that starts at zero, where the output is the base's bit for bit::

    y_h = attn(q_h, k_h, v_h) + tanh(g_h) · attn(q_h, Pk_h, Pv_h)          H numbers more

The prefix joins after the norms and rotary positions of k: it has no position, is no subject to the norm of keys, and
permuting its p rows changes nothing. Masks get p columns that hide nothing, so text towers work too: a causal token
sees the whole prefix and its past. Weights that a caller asks for cover the S keys: what they lack to 1 lies on the
prefix.

In multimodal LLMs every picture and window of a tower sees the prefix. In the LLM it joins after the cache of keys,
which never holds it; where k and v have fewer heads than q, so has the prefix.

Start: Pk, Pv ~ N(0, 0.02²), as transformers' embeddings (reconstructed: the papers leave it open). Keys that small have
logits near 0, so the prefix begins as p nearly equal, mildly attractive keys whose values are near 0; values of exactly
zero would give keys and gates no gradient. There is no ΔW: what the prefix does depends on the queries, and nothing can
be merged or exported. Learning rates are far above LoRA's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.core import DotProductAttention
from ..attention.library_core import LibraryCore, projections
from ..attention.split import SplitAttention
from ..errors import UserError
from ..registry import register
from .base import MethodConfig, WeightUpdate
from .tuner import AdapterLayer, register_method
from .whole import WholeLayer

STD = 0.02


class Widths(NamedTuple):
    """Of one attention: heads of q, features of k and of v over all heads, and an empty tensor of their kind."""

    heads: int
    k: int
    v: int
    like: Tensor


@register(
    "adapter",
    "kv_prefix",
    summary="prefix tuning: learned keys and values in every attention, with a gate if zero_init_gate",
    paper="arXiv 2110.07602",
)
@dataclass
class KvPrefixConfig(MethodConfig):
    """Options of prefix tuning.

    Raises:
        UserError: `length` below 1.
    """

    beyond_linears: ClassVar[tuple[str, ...]] = ("attention",)
    places: ClassVar[tuple[str, ...]] = ("attention",)
    # What every update asks of its config.
    scale: ClassVar[float] = 1.0
    dropout: ClassVar[float] = 0.0

    length: int = field(default=10, metadata={"help": "number of learned keys and values p", "ge": 1})
    zero_init_gate: bool = field(
        default=False, metadata={"help": "weigh the prefix by a gate per head that starts at zero, the base model"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.widths: dict[str, Widths] = {}
        if self.length < 1:
            raise UserError(f"length = {self.length}: a prefix has at least one key and value.")

    def prepare(self, weights: Mapping[str, Tensor]) -> None:
        """Forget the attentions of another model."""
        self.widths = {}

    def inspect(self, name: str, module: nn.Module, parent: nn.Module) -> None:
        """Note the widths of the attention around the core.

        Raises:
            UserError: it is no core of a split attention.
        """
        core = module.base_layer if isinstance(module, AdapterLayer) else module
        ours = isinstance(core, DotProductAttention) and isinstance(parent, SplitAttention)
        if not ours and not isinstance(core, LibraryCore):
            raise UserError(
                f"kv_prefix cannot adapt '{name}', a {type(core).__name__}: call split_attention first, and choose the "
                "core of attention (modules: [attention], or target_modules=['core'])."
            )
        q, k, v = projections(parent)
        weight = getattr(k, "base_layer", k).weight
        like = weight.new_empty(0, dtype=torch.promote_types(weight.dtype, torch.float32))
        heads = parent.num_heads if ours else q.out_features // parent.head_dim
        self.widths[name] = Widths(heads, k.out_features, v.out_features, like)


class KvPrefix(WeightUpdate):
    """Pk (p, D), Pv (p, D) and with a gate g (H,) of one attention."""

    no_decay = ("g",)

    g: nn.Parameter | None

    def __init__(self, core: Any, config: KvPrefixConfig, name: str) -> None:
        super().__init__(config)
        heads, width_k, width_v, like = config.widths[name]
        self.Pk = nn.Parameter(like.new_empty(config.length, width_k).normal_(std=STD))
        self.Pv = nn.Parameter(like.new_empty(config.length, width_v).normal_(std=STD))
        self.g = nn.Parameter(like.new_zeros(heads)) if config.zero_init_gate else None

    def prefix(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return Pk (B, G, p, d) and Pv (B, G, p, e) for k (B, G, S, d) and v (B, G, S, e)."""
        pairs = ((self.Pk, k), (self.Pv, v))
        Pk, Pv = (P.to(x.dtype).unflatten(1, (x.shape[1], -1)).transpose(0, 1) for P, x in pairs)
        return Pk.expand(len(k), -1, -1, -1), Pv.expand(len(v), -1, -1, -1)

    def facts(self) -> dict[str, float]:
        """Compute the mean norms of the prefix's rows, and the largest weight of a gate."""
        norms = {name: float(P.detach().norm(dim=1).mean()) for name, P in (("Pk", self.Pk), ("Pv", self.Pv))}
        return norms | ({} if self.g is None else {"largest_gate": float(self.g.detach().tanh().abs().max())})


class KvPrefixLayer(WholeLayer):
    """The core of an attention, with more keys and values."""

    no_weight = "attends to a learned prefix, which is no part of a weight"

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to the prefix too; else as :class:`~vision_lowrank.attention.core.DotProductAttention`."""
        update: KvPrefix | None = self.working()
        if update is None:
            return self.base_layer(q, k, v, attn_mask, dropout_p, is_causal, scale, need_weights)
        Pk, Pv = update.prefix(k, v)
        if update.g is not None:
            y, weights = self.base_layer(q, k, v, attn_mask, dropout_p, is_causal, scale, need_weights)
            more, _ = self.base_layer(q, Pk, Pv, None, dropout_p, False, scale)
            return y + update.g.tanh().to(y.dtype)[:, None, None] * more, weights
        if is_causal and attn_mask is None:
            attn_mask, is_causal = q.new_ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(), False
        if attn_mask is not None:
            seen = float(attn_mask.dtype == torch.bool)  # True lets a key be seen, as does a zero that is added
            attn_mask = F.pad(attn_mask.expand(*attn_mask.shape[:-1], k.shape[2]), (len(update.Pk), 0), value=seen)
        k, v = torch.cat([Pk, k], dim=2), torch.cat([Pv, v], dim=2)
        y, weights = self.base_layer(q, k, v, attn_mask, dropout_p, is_causal, scale, need_weights)
        return y, None if weights is None else weights[..., len(update.Pk) :]


def wrap_core(module: nn.Module) -> type[AdapterLayer] | None:
    """Return :class:`KvPrefixLayer` for the core of attention, None for anything else."""
    return KvPrefixLayer if isinstance(module, DotProductAttention) else None


register_method("kv_prefix", KvPrefixConfig, KvPrefix, wrap_core)
