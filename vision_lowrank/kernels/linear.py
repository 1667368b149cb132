"""Linears with low-rank updates as one autograd function; those with the same input share their down-projection.

For branches i = 1 … n on one input x (N, in), with W_i (out_i, in) and b_i frozen, A_i (r_i, in), B_i (out_i, r_i)::

    h = A drop(x)ᵀ                            (R, N),   A = [A_1; …; A_n] (R, in),   R = Σ r_i
    y_i = x W_iᵀ + b_i + s_i · h_iᵀ B_iᵀ      (N, out_i),   h_i the r_i rows of h that belong to branch i

and with the gradients g_i = ∂L/∂y_i::

    dh = [s_1 · B_1ᵀ g_1ᵀ; …; s_n · B_nᵀ g_nᵀ]    (R, N)
    dx = Σ_i g_i W_i + drop'(dhᵀ A)               (N, in)
    dA = dh drop(x)                               (R, in)
    dB_i = s_i · (h_i g_i)ᵀ                       (out_i, r_i)

What is kept for the backward pass is h, and x where some A_i trains. Composed of separate operators, the same step
passes over y and over dx again to add the update's parts; here the products accumulate. ΔW is never formed.

Dropout keeps one byte per element of x, its mask, or with :func:`recompute_dropout` only a seed, from which the
backward pass draws the same mask again. Its factor 1 / (1 - p) goes to h and dh instead of to x.

A branch may carry a frozen offset A_0 (r_0, in), B_0 (out, r_0): ΔW = s · (B A + B_0 A_0). It is stacked with A and B
inside the products; its gradients are not computed and its rows of h are not kept.

h and dh lie with one row per rank: with N and out in the thousands and r below a hundred, CPU libraries are two to six
times faster at these thin products when their long side is contiguous. h is an output of the function, so that
autograd knows it: gradients of gradients are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from .triton_linear import triton_linear, triton_wins

PLAIN_TENSORS = (Tensor, nn.Parameter)
HALF = {torch.bfloat16, torch.float16}

_recompute_dropout = False


def recompute_dropout(enabled: bool) -> None:
    """Set whether fused linears draw dropout's masks again in the backward pass instead of keeping them.

    Of the adapters' share of the memory it saves a fifth where A trains, and costs the time of a second drawing.
    Results are the same bit for bit. It holds for the whole process, as do switches of ``torch.backends``.
    """
    global _recompute_dropout
    _recompute_dropout = enabled


class Branch(NamedTuple):
    """One linear with a low-rank update: y = x Wᵀ + b + scale · (drop(x) Aᵀ) Bᵀ.

    Attributes:
        weight: W (out, in), of any strides.
        bias: b (out,), or None.
        A: (r, in).
        B: (out, r).
        scale: the factor before B A.
        dropout: probability of dropping an element of the update's input; 0 in evaluation.
        offset: frozen A_0 (r_0, in) and B_0 (out, r_0), whose product is added to B A; or None.
    """

    weight: Tensor
    bias: Tensor | None
    A: Tensor
    B: Tensor
    scale: float
    dropout: float = 0.0
    offset: tuple[Tensor, Tensor] | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """W, b, A, B, A_0, B_0."""
        return (*self[:4], *(self.offset or (None, None)))

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r + r_0, in) and B (out, r + r_0) as they are multiplied: with the offset, if there is one."""
        A0, B0 = self.offset or (None, None)
        return _join(self.A, A0), _join(self.B, B0, dim=1)


def fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    dropout: float = 0.0,
    offset: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute x Wᵀ + b + scale · (drop(x) Aᵀ) Bᵀ: (..., in) -> (..., out).

    Arguments are those of :class:`Branch`; A and B may be results of other operations.
    """
    return fused_linears(x, [Branch(weight, bias, A, B, scale, dropout, offset)])[0]


def fused_linears(x: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
    """Compute the outputs (..., out_i) of linears with one input x (..., in) and one dropout, whose mask they share.

    All tensors have one type, which is also that of the result; under autocast they are cast to its type. Or x, W and b
    are of half precision and the factors of float32: the update and its gradients are computed in float32 then, and
    what is kept of x stays as narrow as it came. Where the function does not apply (a base weight or offset that
    trains, other mixed types, tensor subclasses, ``torch.compile``, tracing, ``torch.func``, forward-mode
    differentiation and meta tensors), the branches are computed one by one with :func:`reference`.
    """
    tensors = [tensor for branch in branches for tensor in branch.tensors]
    if not _fusable(x, branches, tensors):
        return [reference(x, branch) for branch in branches]
    dropout = branches[0].dropout
    seed = int(torch.randint(2**62, (), device="cpu")) if dropout else 0
    settings = _Settings(tuple(branch.scale for branch in branches), dropout, seed)
    mask = settings.draw_mask(x.shape, x.device) if dropout and not _recompute_dropout else None
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return list(_LowRankLinears.apply(settings, mask, x, *tensors)[1:])
    dtype = torch.get_autocast_dtype(device)
    tensors = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
    with torch.autocast(device, enabled=False):
        return list(_LowRankLinears.apply(settings, mask, x.to(dtype), *tensors)[1:])


def reference(x: Tensor, branch: Branch) -> Tensor:
    """Compute the same as :func:`fused_linear` by separate operators, for any types, with the update in A's."""
    weight, bias, A, B, A0, B0 = branch.tensors
    A, B = _join(A, A0), _join(B, B0, dim=1)
    y = F.linear(x, weight, bias)
    h = F.linear(F.dropout(x.to(A.dtype), branch.dropout), A)
    return (y + F.linear(h * branch.scale, B)).to(y.dtype)


def low_rank_addmm(x: Tensor, weight: Tensor, bias: Tensor | None, h: Tensor, B: Tensor, scale: float) -> Tensor:
    """Compute x Wᵀ + b + scale · h Bᵀ: (N, in), (out, in), (out,), (N, r), (out, r) -> (N, out), of the type of x."""
    fits = x.is_cuda and h.dtype == x.dtype and not torch.is_grad_enabled()
    if fits and triton_wins(_torch_addmm, x, weight, bias, h, B, scale):
        return triton_linear(x, weight, bias, h, B, scale)
    return _torch_addmm(x, weight, bias, h, B, scale)


def _torch_addmm(x: Tensor, weight: Tensor, bias: Tensor | None, h: Tensor, B: Tensor, scale: float) -> Tensor:
    y = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
    if h.dtype == y.dtype:
        return y.addmm_(h, B.T, alpha=scale)
    return y.add_(h @ B.T, alpha=scale)  # in the wider type, rounded once


class _Settings(NamedTuple):
    scales: tuple[float, ...]
    dropout: float
    seed: int

    @property
    def levels(self) -> int:
        """How many of the 2¹⁶ values of a short integer keep their element."""
        return min(max(round((1 - self.dropout) * 2**16), 1), 2**16 - 1)

    @property
    def keep(self) -> float:
        """1 - p as drawn, within 2⁻¹⁷ of what was asked."""
        return self.levels / 2**16

    def draw_mask(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Draw which elements of x (..., in) dropout keeps, booleans (N, in): the same for the same seed and shape."""
        generator, size = torch.Generator(device).manual_seed(self.seed), shape.numel()
        rows = (size // shape[-1], shape[-1])
        if device.type != "cpu":
            return torch.empty(rows, dtype=torch.bool, device=device).bernoulli_(self.keep, generator=generator)
        # On a CPU `bernoulli_` takes as long as the linear itself; four elements from one draw, an eighth of that.
        bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
        return (bits.view(torch.int16)[:size] < self.levels - 2**15).view(rows)


class _LowRankLinears(torch.autograd.Function):
    """(settings, dropout's mask, x, W, b, A, B, A_0, B_0 of each branch) -> (h, y_1, y_2, …)."""

    @staticmethod
    def forward(settings: _Settings, mask: Tensor | None, x: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        weights, biases, *factors = (tensors[i::6] for i in range(6))
        As, Bs = _with_offsets(*factors)
        source = rows.to(As[0].dtype)
        if settings.dropout:
            mask = settings.draw_mask(x.shape, x.device) if mask is None else mask
            hidden = (_stack(As) @ (source * mask).T).div_(settings.keep)
        else:
            hidden = _stack(As) @ source.T
        parts = _split(hidden, As)
        outputs = [_own_rows(hidden, As, factors[0])]
        for weight, bias, part, B, scale in zip(weights, biases, parts, Bs, settings.scales, strict=True):
            y = low_rank_addmm(rows, weight, bias, part.T, B, scale)
            # A view would forbid the user's in-place operations on it: autograd refuses them on views of a function.
            outputs.append(torch.ops.aten._unsafe_view(y, [*x.shape[:-1], len(weight)]))
        return tuple(outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        settings, mask, x, *tensors = inputs
        A_trains, B_trains = (any(ctx.needs_input_grad[i::6]) for i in (5, 6))
        ctx.settings, ctx.shape = settings, x.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            mask if A_trains or ctx.needs_input_grad[2] else None,
            x if A_trains else None,
            output[0] if B_trains else None,
            *(tensor for i in (0, 2, 3, 4, 5) for tensor in tensors[i::6]),
        )

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        mask, x, h, *tensors = ctx.saved_tensors
        settings, n = ctx.settings, len(grads)
        weights, *factors = (tensors[i * n : (i + 1) * n] for i in range(5))
        _, _, x_needs, *needs = ctx.needs_input_grad
        result: list[Tensor | None] = [None] * (6 * n)
        with torch.autocast(weights[0].device.type, enabled=False):
            rows = [None if g is None else g.reshape(-1, g.shape[-1]) for g in grads]
            As, Bs = _with_offsets(*factors)
            parts = _hidden_gradients(rows, Bs, factors[0], settings.scales, grad_h)
            if parts is None:
                return (None, None, None, *result)
            dh = _stack(parts)
            if settings.dropout:
                dh = dh / settings.keep
                mask = settings.draw_mask(ctx.shape, dh.device) if mask is None else mask
            if any(needs[2::6]):
                source = x.reshape(-1, ctx.shape[-1]).to(dh.dtype)
                dA = _own_rows(dh, As, factors[0]) @ (source if mask is None else source * mask)
                result[2::6] = _split(dA, factors[0])
            if any(needs[3::6]):
                result[3::6] = [
                    None if g is None else (part @ g.to(part.dtype)).mul_(scale).T
                    for g, part, scale in zip(rows, _split(h, factors[0]), settings.scales, strict=True)
                ]
            dx = _input_gradient(rows, weights, dh, _stack(As), mask).view(ctx.shape) if x_needs else None
        return (None, None, dx, *(tensor if need else None for tensor, need in zip(result, needs, strict=True)))


def _hidden_gradients(
    rows: Sequence[Tensor | None],
    Bs: Sequence[Tensor],
    As: Sequence[Tensor],
    scales: Sequence[float],
    grad_h: Tensor | None,
) -> list[Tensor] | None:
    """Compute dh (r_i + r_0, N) of each branch, As without and Bs with offsets; None if no output was used.

    `grad_h` is given only where gradients are differentiated again.
    """
    known = next((g.T for g in rows if g is not None), grad_h)
    if known is None:
        return None
    width = known.shape[1]
    parts = [
        B.new_zeros(B.shape[1], width) if g is None else (B.T @ g.T.to(B.dtype)).mul_(scale)
        for g, B, scale in zip(rows, Bs, scales, strict=True)
    ]
    if grad_h is None:
        return parts
    own = _split(grad_h, As)
    return [part + F.pad(more, (0, 0, 0, len(part) - len(more))) for part, more in zip(parts, own, strict=True)]


def _input_gradient(
    rows: Sequence[Tensor | None], weights: Sequence[Tensor], dh: Tensor, A: Tensor, mask: Tensor | None
) -> Tensor:
    """Compute dx (N, in), accumulated in one buffer."""
    pairs = [(g, weight) for g, weight in zip(rows, weights, strict=True) if g is not None]
    if mask is not None or not pairs:
        dx = (dh.T @ A if mask is None else (dh.T @ A).mul_(mask)).to(weights[0].dtype)
    else:
        g, weight = pairs.pop()
        dx = low_rank_addmm(g, weight.T, None, dh.T, A.T, 1.0)
    for g, weight in pairs:
        dx.addmm_(g, weight)
    return dx


def _join(own: Tensor, offset: Tensor | None, dim: int = 0) -> Tensor:
    return own if offset is None else torch.cat([own, offset], dim=dim)


def _with_offsets(
    As: Sequence[Tensor], Bs: Sequence[Tensor], A0s: Sequence[Tensor | None], B0s: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor]]:
    return list(map(_join, As, A0s)), [_join(B, B0, dim=1) for B, B0 in zip(Bs, B0s, strict=True)]


def _stack(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _split(stacked: Tensor, As: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (stacked,) if len(As) == 1 else stacked.split([len(A) for A in As])


def _own_rows(stacked: Tensor, joined: Sequence[Tensor], As: Sequence[Tensor]) -> Tensor:
    """Return `stacked` without the offsets' rows, in memory of its own: a slice would keep them alive."""
    if len(stacked) == sum(map(len, As)):
        return stacked
    return torch.cat([part[: len(A)] for part, A in zip(_split(stacked, joined), As, strict=True)])


def _fusable(x: Tensor, branches: Sequence[Branch], tensors: Sequence[Tensor | None]) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta:
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    given = [x, *(tensor for tensor in tensors if tensor is not None)]
    types = {tensor.dtype for tensor in given}
    if torch.is_autocast_enabled(x.device.type):
        one_type = torch.float64 not in types
    else:
        one_type = len(types) == 1 or (types == {x.dtype, torch.float32} and _is_half(x, branches))
    frozen = not any(
        tensor is not None and tensor.requires_grad
        for b in branches
        for tensor in (b.weight, b.bias, *(b.offset or ()))
    )
    return one_type and frozen and all(type(tensor) in PLAIN_TENSORS for tensor in given)


def _is_half(x: Tensor, branches: Sequence[Branch]) -> bool:
    """Tell whether x, every W and every b have one type of half precision, and every factor has another type."""
    own = {x.dtype, *(tensor.dtype for b in branches for tensor in b[:2] if tensor is not None)}
    factors = {tensor.dtype for b in branches for tensor in b.tensors[2:] if tensor is not None}
    return len(own) == 1 and own <= HALF and not own & factors
