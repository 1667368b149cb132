"""The core of transformers' own attention, without a copy of that attention.

The attentions of multimodal LLMs project, normalise, rotate and cache in forwards of their own. Then they look up a
function by the name in their config and call it, the towers of Qwen once per picture or window::

    y, weights = FUNCTIONS[config._attn_implementation](attention, q, k, v, mask, dropout, scaling, is_causal, …)
    q (B, H, L, d), k and v (B, G, S, d), H a multiple of G, mask (B or 1, 1, L, S) or None  ->  y (B, L, H, d)

:func:`give_cores` gives each of them a module ``core`` and a copy of its config that names :func:`_through_core`, which
calls that core. A :class:`LibraryCore` calls the library's function with the same arguments, so no bit changes until
an adapter wraps it. Masks are made by the model, whose own config stays as it is. Keys reach the core after rotary
positions and after the cache, which therefore never holds what an adapter adds there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .core import DotProductAttention
from .fused_qkv import SplitQkv

NAME = "vision_lowrank"
# The only function of the library that takes a mask or none for every key: others have forms of their own.
FUNCTION = "sdpa"
# By name, so that none of these models is imported before it is asked for.
OWNERS = {
    *("internvl.InternVLVisionAttention", "siglip.SiglipAttention", "smolvlm.SmolVLMVisionAttention"),
    *("qwen2_vl.VisionAttention", "qwen2_5_vl.Qwen2_5_VLVisionAttention", "qwen3_vl.Qwen3VLVisionAttention"),
    *("qwen2_vl.Qwen2VLAttention", "qwen2_5_vl.Qwen2_5_VLAttention", "qwen3_vl.Qwen3VLTextAttention"),
    *("qwen2.Qwen2Attention", "qwen3.Qwen3Attention", "llama.LlamaAttention"),
}


class LibraryCore(DotProductAttention):
    """``scaled_dot_product_attention`` as transformers calls it, for keys of as many or fewer heads than queries.

    Attributes:
        num_key_value_groups: queries' heads per head of keys.
        config: of the attention, as it was.
    """

    def __init__(self, owner: Any) -> None:
        super().__init__()
        self.num_key_value_groups = getattr(owner, "num_key_value_groups", 1)
        self.config = owner.config
        self.train(owner.training)

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
    ) -> tuple[Tensor, None]:
        """Attend as :class:`.core.DotProductAttention`, with k and v (B, G, S, d), and never with weights."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        y, _ = sdpa_attention_forward(self, q, k, v, attn_mask, dropout_p, scale, is_causal)
        return y.transpose(1, 2), None


def give_cores(root: nn.Module) -> None:
    """Give a ``core`` to every attention inside `root` that is known here and has none, in place."""
    for owner in root.modules():
        if _is_owner(owner) and not hasattr(owner, "core") and owner.config._attn_implementation == FUNCTION:
            _register()
            owner.core = LibraryCore(owner)
            owner.config = copy.copy(owner.config)
            owner.config._attn_implementation = NAME


def take_cores(root: nn.Module) -> None:
    """Undo :func:`give_cores`, for cores without an adapter."""
    for _, owner in library_cores(root):
        owner.config = owner.core.config
        del owner.core


def library_cores(root: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield every attention inside `root` that :func:`give_cores` gave a core, with its path."""
    return ((path, child) for path, child in list(root.named_modules()) if _is_owner(child) and hasattr(child, "core"))


def projections(attention: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """Return the linears of q, k and v of an attention that is split, or has a core of the library."""
    holder = attention.qkv if isinstance(getattr(attention, "qkv", None), SplitQkv) else attention
    return holder.q_proj, holder.k_proj, holder.v_proj


def _is_owner(module: nn.Module) -> bool:
    kind = type(module)
    package, _, rest = kind.__module__.removeprefix("transformers.models.").partition(".")
    return bool(rest) and f"{package}.{kind.__name__}" in OWNERS


def _register() -> None:
    """Make :func:`_through_core` known to transformers by its name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _through_core)


def _through_core(
    attention: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Run the core in the library's form; what else the library gives (positions, lengths) is not for this function."""
    causal = attention.is_causal if is_causal is None else is_causal
    causal = bool(causal) and attention_mask is None and q.shape[2] > 1
    y, _ = attention.core(q, k, v, attention_mask, dropout, causal, scaling)
    return y.transpose(1, 2).contiguous(), None
