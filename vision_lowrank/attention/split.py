"""Split fused attention into four named linears, and fuse it back.

Libraries keep the projections of attention in one matrix: ``in_proj_weight`` of ``nn.MultiheadAttention`` and of
open_clip's ``Attention``, ``qkv`` of timm, all of shape (3D, E) with the rows of q, k, v in that order. There no
adapter can sit on q alone, and PEFT's LoRA on ``nn.MultiheadAttention`` computes a wrong function.
:func:`split_attention` replaces each such module, in place, by one that computes the same::

    q, k, v = x Wq' + bq, x Wk' + bk, x Wv' + bv        Wq = W[:D], Wk = W[D:2D], Wv = W[2D:], bit for bit
    y = softmax(q k' / sqrt(d) + mask) v, heads joined  (B, L, D), by F.scaled_dot_product_attention
    out = y Wo' + bo                                    (B, L, E)

with ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj`` as ordinary ``nn.Linear``, the caller's arguments and return
value unchanged. The second line is a module of its own, ``core``, without tensors: methods that change how q, k and v
meet adapt it as others adapt a linear. The split module keeps the emptied original outside its own state, so
:func:`fuse_attention` can put it back with every name, option and bit.

Split are exactly these classes: ``nn.MultiheadAttention``, ``open_clip.transformer.Attention``, and timm's
``Attention``, ``AttentionRope`` and ``EvaAttention`` where they hold a fused ``qkv``. Subclasses, which may compute
something else, and window or relative-position attention (Swin, BEiT) are left as they are. Of the vision attention of
Qwen's multimodal models the fused ``qkv`` alone is split, see :mod:`.fused_qkv`; all attention of multimodal LLMs gets
a ``core`` around the library's own function, see :mod:`.library_core`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from open_clip.transformer import Attention as OpenClipAttention
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import Attention as TimmAttention
from torch import Tensor, nn

from ..errors import UserError
from ..identity import Identified, keep_identity
from .core import DotProductAttention
from .fused_qkv import SplitQkv, fuse_qkv, linear_of, owns_qkv, split_qkv, split_qkvs, stack, thirds
from .library_core import give_cores, library_cores, take_cores

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


@torch.enable_grad()  # under no_grad the slices of a trainable weight would count as frozen
def split_attention(module: nn.Module) -> nn.Module:
    """Replace every fused attention inside `module`, in place; what is split already stays as it is.

    Returns:
        `module`, or its replacement where it is itself an attention.

    Raises:
        UserError: an attention carries an adapter already, or has an option that cannot be split exactly. Nothing
            has been changed then.
    """
    for path, child in _attentions(module, lambda child: type(child) in SPLITS or owns_qkv(child)):
        reason = _obstacle(path, child)
        if reason:
            raise UserError(f"attention '{path or type(child).__name__}' cannot be split: {reason}.")
    known = keep_identity(module)
    split_qkv(module)
    give_cores(module)
    module = _swap(module, can_split, lambda child: SPLITS[type(child)](child))
    for encoder in _encoders(module):
        # Its nested-tensor path hands the layers an input that only nn.MultiheadAttention's own fast path takes.
        encoder.__dict__.setdefault("_nested_before_split", encoder.use_nested_tensor)
        encoder.use_nested_tensor = False
    for child in known:
        child.hold_identity()
    return module


def renew_identity(backbone: Identified) -> None:
    """Let the fingerprint of a backbone without adapters be that of its weights as they are now.

    Of weights that were only cast or split since it was taken, it stays that of the weights as they were loaded.
    """
    if backbone.holds or getattr(backbone, "factored", None):
        return
    if not any(isinstance(child, SplitAttention | SplitQkv) for child in backbone.modules()):
        backbone.take_identity()
        return
    plain = fuse_attention(copy.deepcopy(backbone))
    plain.take_identity()
    backbone.fingerprint = plain.fingerprint
    backbone.hold_identity()


def fuse_attention(module: nn.Module) -> nn.Module:
    """Put back the original class of every split attention inside `module`, in place, with the present weights.

    Returns:
        `module`, or its replacement where it is itself a split attention.

    Raises:
        UserError: a projection or the core still carries an adapter. Nothing has been changed then.
    """
    split = _attentions(module, lambda child: isinstance(child, SplitAttention))
    parts = [(path, child, (*PROJECTIONS, "core")) for path, child in (*split, *split_qkvs(module))]
    parts += [(path, child, ("core",)) for path, child in library_cores(module)]
    for path, child, names in parts:
        for name in (name for name in names if hasattr(child, name)):
            part = getattr(child, name)
            if not isinstance(part, nn.Linear | DotProductAttention) or hasattr(part, "base_layer"):
                place = f"{path}.{name}".lstrip(".")
                raise UserError(f"'{place}' still carries an adapter: merge it before attention is fused.")
    for encoder in _encoders(module):
        encoder.use_nested_tensor = encoder.__dict__.pop("_nested_before_split", encoder.use_nested_tensor)
    fuse_qkv(module)
    take_cores(module)
    return _swap(module, lambda child: isinstance(child, SplitAttention), lambda child: child.fuse())


def can_split(module: nn.Module) -> bool:
    """Tell whether :func:`split_attention` would replace `module` itself."""
    return type(module) in SPLITS and getattr(module, "qkv", module) is not None


class SplitAttention(nn.Module):
    """Attention with ``q_proj k_proj v_proj out_proj``; subclasses compute what their original computes.

    Attributes:
        num_heads: number of heads.
        core: what happens between the projections.
    """

    OUT: ClassVar[str] = "out_proj"  # the original's name of the output projection
    CARRIED: ClassVar[tuple[str, ...]] = ()  # what else of the original takes part in the forward

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.num_heads = source.num_heads
        self.q_proj, self.k_proj, self.v_proj = (linear_of(weight, bias) for weight, bias in self._take(source))
        self.core = DotProductAttention()
        self.train(source.training)
        self.out_proj = getattr(source, self.OUT)
        setattr(source, self.OUT, None)
        for name in self.CARRIED:
            setattr(self, name, getattr(source, name, None))
        # A tuple hides the emptied original from parameters(), state_dict() and to().
        self._source = (source,)

    def fuse(self) -> nn.Module:
        """Fuse the projections back into the original module, with the present weights."""
        (source,) = self._source
        source.training = self.training
        self._give(source, [self.q_proj, self.k_proj, self.v_proj])
        setattr(source, self.OUT, self.out_proj)
        for name in self.CARRIED:
            if hasattr(source, name):
                setattr(source, name, getattr(self, name))
        return source

    def _take(self, source: nn.Module) -> list[tuple[Tensor, Tensor | None]]:
        """Take weight and bias of q, k, v out of `source`."""
        weight, bias = source.in_proj_weight, source.in_proj_bias
        source.in_proj_weight = source.in_proj_bias = None
        return list(zip(thirds(weight), thirds(bias), strict=True))

    def _give(self, source: nn.Module, linears: list[nn.Linear]) -> None:
        """Put the linears back into the fused weight and bias of `source`, the inverse of :meth:`_take`."""
        source.in_proj_weight = stack([linear.weight for linear in linears])
        source.in_proj_bias = stack([linear.bias for linear in linears])

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Compute q, k and v before the heads; adapted projections of one input may share computations."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        together = [linear.forward_together for linear in projections if hasattr(linear, "forward_together")]
        if together and query is key and key is value:
            return together[0](projections, query)
        return [linear(x) for linear, x in zip(projections, (query, key, value), strict=True)]

    def _heads(self, x: Tensor) -> Tensor:
        """Separate the heads: (B, L, H·d) -> (B, H, L, d)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class SplitMultiheadAttention(SplitAttention):
    """``nn.MultiheadAttention``, self or cross, with its masks, weights and layouts."""

    CARRIED = ("embed_dim", "batch_first", "dropout")

    # What nn.TransformerEncoderLayer reads to decide about its fused kernel, which would bypass the linears.
    in_proj_weight = None
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def _take(self, source: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
        if source._qkv_same_embed_dim:
            return super()._take(source)
        weights = [source.q_proj_weight, source.k_proj_weight, source.v_proj_weight]
        biases = thirds(source.in_proj_bias)
        source.q_proj_weight = source.k_proj_weight = source.v_proj_weight = source.in_proj_bias = None
        return list(zip(weights, biases, strict=True))

    def _give(self, source: nn.MultiheadAttention, linears: list[nn.Linear]) -> None:
        if source._qkv_same_embed_dim:
            super()._give(source, linears)
            return
        source.q_proj_weight, source.k_proj_weight, source.v_proj_weight = (linear.weight for linear in linears)
        source.in_proj_bias = stack([linear.bias for linear in linears])

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, with arguments and results of ``nn.MultiheadAttention.forward``."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is only a hint: give attn_mask too.")
        one_input = query is key and key is value
        batched = query.dim() == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = key_padding_mask[None] if key_padding_mask is not None else None
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        if one_input:
            key = value = query
        q, k, v = (self._heads(x) for x in self._project(query, key, value))
        dropout = self.dropout if self.training else 0.0
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else _join(_additive(attn_mask, q), _additive(key_padding_mask, q), q)
        y, weights = self.core(q, k, v, mask, dropout, causal, need_weights=need_weights)
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        out = self.out_proj(y.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], weights
        return (out if self.batch_first else out.transpose(0, 1)), weights


class SplitOpenClipAttention(SplitAttention):
    """open_clip's own ``Attention``: optional norms of q and k, head scale and inner norm."""

    CARRIED = ("ln_q", "ln_k", "attn_drop", "head_scale", "ln_inner", "out_drop")

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend: (B, L, E) -> (B, L, E); `attn_mask` (L, L) or (B·H, L, L) is added, or True where a key is hidden."""
        q, k, v = (self._heads(y) for y in self._project(x, x, x))
        mask = _join(_additive(attn_mask, q), None, q)
        dropout = self.attn_drop.p if self.training else 0.0
        mask = mask.to(q.dtype) if mask is not None else None
        y, _ = self.core(self.ln_q(q), self.ln_k(k), v, mask, dropout)
        if self.head_scale is not None:
            y = y * self.head_scale
        return self.out_drop(self.out_proj(self.ln_inner(y.transpose(1, 2).flatten(2))))


class SplitTimmAttention(SplitAttention):
    """timm's ``Attention``: optional norms of q, k and of the result, a gate, dropout."""

    OUT = "proj"
    CARRIED = ("q_norm", "k_norm", "attn_drop", "norm", "gate", "proj_drop", "scale")

    def _take(self, source: nn.Module) -> list[tuple[Tensor, Tensor | None]]:
        weight, bias = source.qkv.weight, source.qkv.bias
        source.qkv = None
        return list(zip(thirds(weight), thirds(bias), strict=True))

    def _give(self, source: nn.Module, linears: list[nn.Linear]) -> None:
        weight = stack([linear.weight for linear in linears])
        source.qkv = linear_of(weight, stack([linear.bias for linear in linears])).train(self.training)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend: (B, L, E) -> (B, L, E); `attn_mask` is added, or True where a key is seen."""
        return self._attend(x, None, attn_mask, is_causal)

    def _attend(self, x: Tensor, rope: Tensor | None, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        q, k, v = (self._heads(y) for y in self._project(x, x, x))
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = self._rotate(q, rope).type_as(v), self._rotate(k, rope).type_as(v)
        dropout = self.attn_drop.p if self.training else 0.0
        y, _ = self.core(q, k, v, attn_mask, dropout, is_causal, self.scale)
        y = y.transpose(1, 2).flatten(2)
        y = self.norm(y) if self.norm is not None else y
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        return self.proj_drop(self.out_proj(y))


class SplitRopeAttention(SplitTimmAttention):
    """timm's ``AttentionRope``: q and k of all tokens after the prefix are rotated by their position."""

    CARRIED = (*SplitTimmAttention.CARRIED, "num_prefix_tokens", "rotate_half")

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend: (B, L, E) -> (B, L, E); `rope` holds sines and cosines of the L - prefix positions."""
        return self._attend(x, rope, attn_mask, is_causal)

    def _rotate(self, x: Tensor, rope: Tensor) -> Tensor:
        prefix, rest = x[:, :, : self.num_prefix_tokens], x[:, :, self.num_prefix_tokens :]
        half = {"half": True} if self.rotate_half else {}
        return torch.cat([prefix, apply_rot_embed_cat(rest, rope, **half)], dim=2)


class SplitEvaAttention(SplitRopeAttention):
    """timm's ``EvaAttention``: the same, with biases of q and v beside ``qkv`` and none for k."""

    def _take(self, source: nn.Module) -> list[tuple[Tensor, Tensor | None]]:
        biases = (source.q_bias, None, source.v_bias)
        weights = [weight for weight, _ in super()._take(source)]
        source.q_bias = source.v_bias = None
        return list(zip(weights, biases, strict=True))

    def _give(self, source: nn.Module, linears: list[nn.Linear]) -> None:
        source.qkv = linear_of(stack([linear.weight for linear in linears]), None).train(self.training)
        source.q_bias, source.v_bias = linears[0].bias, linears[2].bias
        if source.q_bias is not None:
            source.k_bias = torch.zeros_like(source.q_bias, requires_grad=False)


SPLITS: dict[type[nn.Module], type[SplitAttention]] = {
    nn.MultiheadAttention: SplitMultiheadAttention,
    OpenClipAttention: SplitOpenClipAttention,
    TimmAttention: SplitTimmAttention,
    AttentionRope: SplitRopeAttention,
    EvaAttention: SplitEvaAttention,
}


def _obstacle(path: str, attention: nn.Module) -> str | None:
    """Tell why `attention` cannot be split exactly; None where it can, or has nothing to split."""
    if path.rpartition(".")[2] == "base_layer" or any(hasattr(child, "base_layer") for child in attention.modules()):
        return "it carries an adapter already; split attention first, then attach"
    if getattr(attention, "bias_k", None) is not None:
        return "add_bias_kv appends a key and a value that belong to no linear"
    if getattr(attention, "add_zero_attn", False):
        return "add_zero_attn appends a key and a value that belong to no linear"
    if isinstance(attention, OpenClipAttention):
        if attention.logit_scale is not None:
            return "scaled cosine attention is not a scaled dot product"
        known = {"self", "x", "attn_mask"}
        unknown = [name for name in inspect.signature(OpenClipAttention.forward).parameters if name not in known]
        if unknown:
            return f"this version of open_clip gives it the argument '{unknown[0]}', which is not known here"
    return None


def _attentions(root: nn.Module, wanted: Callable[[nn.Module], bool]) -> Iterator[tuple[str, Any]]:
    return ((path, child) for path, child in root.named_modules() if wanted(child))


def _encoders(root: nn.Module) -> list[nn.TransformerEncoder]:
    """Find the torch encoders inside `root` whose layers are split."""
    encoders = (child for child in root.modules() if isinstance(child, nn.TransformerEncoder))
    return [encoder for encoder in encoders if any(isinstance(child, SplitAttention) for child in encoder.modules())]


def _swap(root: nn.Module, wanted: Callable[[nn.Module], bool], make: Callable[[Any], nn.Module]) -> nn.Module:
    """Replace every wanted module below `root`, one that is used in several places by one replacement."""
    if wanted(root):
        return make(root)
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(root.modules()):
        for name, child in parent.named_children():
            if child not in made and wanted(child):
                made[child] = make(child)
            if child in made:
                setattr(parent, name, made[child])
    return root


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Convert a mask of torch's kind (True where a key is hidden, or a float to add) to a float to add."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def _join(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """Join additive masks (L, S) or (B·H, L, S), and (B, S), into one that broadcasts over (B, H, L, S)."""
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.unflatten(0, q.shape[:2])
    if key_padding_mask is None:
        return attn_mask
    padding = key_padding_mask[:, None, None, :]
    return padding if attn_mask is None else attn_mask + padding
