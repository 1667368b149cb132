"""Pairs of split q, k and v as one pair of the fused ``qkv``: a LoRA for a model as its library has it, exactly.

With ΔW_i = s_i · B_i A_i, A_i (r_i, E), B_i (D, r_i) for i in q, k, v, and the rows of q, k, v one after another in
``qkv`` (3D, E)::

    A = [A_q; A_k; A_v]  (Σ r_i, E)      B = s_i / s · blockdiag(B_q, B_k, B_v)  (3D, Σ r_i)      ΔW = s · B A

s is the scale of the first part; equal scales give r' = 3r and alpha' = 3 alpha, and no number changes. A part without
an adapter has rows of zeros. ``out_proj`` is the library's ``proj`` and changes its name only. In Qwen's vision
towers the three linears are inside ``qkv``, whose own path is that of the fused one.

Source: LoRAT, "Tracking Meets LoRA", arXiv 2403.05231 (its published weights keep q, k and v apart).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch

from ..adapters.base import Factors
from ..attention.fused_qkv import SplitQkv
from ..attention.split import SplitAttention, SplitRopeAttention, SplitTimmAttention
from ..errors import UserError

PARTS = ("q_proj", "k_proj", "v_proj")
# Classes whose original calls one linear for q, k and v: an adapter on it takes part in the forward.
CALLED = (SplitTimmAttention, SplitRopeAttention, SplitQkv)
Split: TypeAlias = SplitAttention | SplitQkv


def fused_name(name: str, attentions: Mapping[str, Split]) -> str:
    """Return the path of a module as it is once attention is fused back; `attentions` by path."""
    parent, _, child = name.rpartition(".")
    attention = attentions.get(parent)
    if attention is None:
        return name
    if isinstance(attention, SplitQkv):
        return parent
    fused = {**dict.fromkeys(PARTS, "qkv"), "out_proj": attention.OUT}
    return f"{parent}.{fused.get(child, child)}"


def fuse_pairs(pairs: Mapping[str, Factors], attentions: Mapping[str, Split]) -> dict[str, Factors]:
    """Return factors by the paths of the fused model.

    Args:
        pairs: path in the split model -> factors.
        attentions: path -> split attention or ``qkv``, of all in the model.

    Raises:
        UserError: an adapted attention whose library keeps q, k and v in a parameter or reads a linear's weight
            without calling it, where no adapter can sit.
    """
    result: dict[str, Factors] = {}
    for path, pair in pairs.items():
        name, (parent, _, child) = fused_name(path, attentions), path.rpartition(".")
        if parent in attentions:
            _check(parent, attentions[parent])
        if child not in PARTS or parent not in attentions:
            result[name] = pair
        elif name not in result:
            result[name] = _stack(parent, pairs, attentions[parent])
    return result


def _stack(parent: str, pairs: Mapping[str, Factors], attention: Split) -> Factors:
    """Stack the pairs of an attention into one for the three rows of blocks."""
    heights = [getattr(attention, part).out_features for part in PARTS]
    present = {part: pairs[f"{parent}.{part}"] for part in PARTS if f"{parent}.{part}" in pairs}
    A = torch.cat([pair.A for pair in present.values()])
    scale = next(iter(present.values())).scale or 1.0
    B = A.new_zeros(sum(heights), len(A))
    row = column = 0
    for part, height in zip(PARTS, heights, strict=True):
        if part in present:
            pair = present[part]
            B[row : row + height, column : column + len(pair.A)] = pair.B.detach() * (pair.scale / scale)
            column += len(pair.A)
        row += height
    return Factors(A.detach(), B, scale)


def _check(path: str, attention: Split) -> None:
    if type(attention) not in CALLED:
        raise UserError(
            f"'{path}' ({type(attention).__name__}) calls no linear for q, k and v together once fused, so no LoRA can "
            "sit there: leave fuse_qkv out and load the LoRA on the split model."
        )
