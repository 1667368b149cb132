"""One matrix for q, k and v, and three: the tensors behind split attention, and the towers that need no more.

Rows of q, k, v follow one another in a fused weight (3D, E) and bias (3D). The vision towers of Qwen2-VL, Qwen2.5-VL
and Qwen3-VL call a linear of that shape, ``qkv``, and compute the rest themselves; :class:`SplitQkv` takes its place::

    qkv(x) = [x Wq' + bq, x Wk' + bk, x Wv' + bv]    (…, E) -> (…, 3D)

with ``q_proj``, ``k_proj``, ``v_proj`` as ordinary ``nn.Linear``. The attention around it stays the library's own.
:func:`vision_lowrank.attention.split.split_attention` and ``fuse_attention`` call what is here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# By name, so that none of these models is imported before it is asked for.
OWNERS = ("VisionAttention", "Qwen2_5_VLVisionAttention", "Qwen3VLVisionAttention")


class SplitQkv(nn.Module):
    """Three linears in the place of one fused `source`, with its weights."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        parts = zip(thirds(source.weight), thirds(source.bias), strict=True)
        self.q_proj, self.k_proj, self.v_proj = (linear_of(weight, bias) for weight, bias in parts)
        self.train(source.training)

    def forward(self, x: Tensor) -> Tensor:
        """Project: (…, E) -> (…, 3D), q, k and v one behind the other."""
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)

    def fuse(self) -> nn.Linear:
        """Build one linear with the present weights."""
        parts = [self.q_proj, self.k_proj, self.v_proj]
        fused = linear_of(stack([part.weight for part in parts]), stack([part.bias for part in parts]))
        return fused.train(self.training)


def owns_qkv(module: nn.Module) -> bool:
    """Tell whether `module` is an attention whose ``qkv`` can become :class:`SplitQkv` or carries an adapter there."""
    kind = type(module)
    qwen = kind.__name__ in OWNERS and kind.__module__.startswith("transformers.models.qwen")
    return qwen and not isinstance(module.qkv, SplitQkv)


def split_qkv(root: nn.Module) -> None:
    """Split the ``qkv`` of every attention inside `root` that :func:`owns_qkv`, in place."""
    for owner in list(root.modules()):
        if owns_qkv(owner):
            owner.qkv = SplitQkv(owner.qkv)


def fuse_qkv(root: nn.Module) -> None:
    """Put one linear back for every :class:`SplitQkv` below `root`, in place."""
    for owner in list(root.modules()):
        if isinstance(getattr(owner, "qkv", None), SplitQkv):
            owner.qkv = owner.qkv.fuse()


def split_qkvs(root: nn.Module) -> Iterator[tuple[str, SplitQkv]]:
    """Yield every :class:`SplitQkv` inside `root` with its path."""
    return ((path, child) for path, child in root.named_modules() if isinstance(child, SplitQkv))


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Build a linear with copies of `weight` (out, in) and `bias` (out,), without a draw from the random generator."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            setattr(made, name, nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad))
    return made


def thirds(tensor: Tensor | None) -> tuple[Tensor | None, ...]:
    """Split into the rows of q, k and v; three None for None."""
    return (None, None, None) if tensor is None else tensor.chunk(3)


def stack(tensors: list[Tensor | None]) -> nn.Parameter | None:
    """Join what :func:`thirds` cut, as a parameter that trains if one of them does; None where the first is None."""
    if tensors[0] is None:
        return None
    joined = torch.cat([tensor.detach() for tensor in tensors])
    return nn.Parameter(joined, requires_grad=any(tensor.requires_grad for tensor in tensors))
