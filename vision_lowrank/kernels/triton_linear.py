# ruff: noqa: ANN001 (Triton takes no annotation but tl.constexpr)
"""Base product and low-rank path in one CUDA kernel, written in Triton: y = x Wᵀ + b + s · h Bᵀ.

x (N, in), W (out, in), b (out,), h (N, r), B (out, r) -> y (N, out), all of one type (fp16, bf16 or fp32) and of any
strides, so that the same kernel serves the gradient dx = g W + dh A, with Wᵀ and Aᵀ as views. Each program computes one
tile of y: it accumulates x Wᵀ over blocks of in, and in its epilogue the product over blocks of r and the bias, before
the tile is rounded and written, once::

    tile (M, N) = Σ_in x (M, K) W (N, K)ᵀ  +  s · Σ_r h (M, R) B (N, R)ᵀ  +  b (N,)

Plain torch writes y, reads it again, writes it again, and rounds twice. The thin product h = x Aᵀ stays with torch:
inside the kernel every column of tiles would repeat it.

Which of the two is faster is measured once per shape and type, not assumed: the kernel saves a pass over y, but cuBLAS
often has the better product, in fp32 nearly always, where the tensor cores are not used. On anything but CUDA, without
Triton, or where the kernel cannot be compiled, torch computes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton for this system
    triton = None

TYPES = (torch.float16, torch.bfloat16, torch.float32)
WARM_UP, REPEATS = 3, 10
_FASTER: dict[tuple[Any, ...], bool] = {}


class Blocks(NamedTuple):
    """One program's tile: M rows and N columns of y, K of in and R of r at a time; powers of two, 16 or more."""

    M: int
    N: int
    K: int
    R: int = 16


# Tiles with their numbers of warps and of pipeline stages: the large ones for long batches, the small for short ones.
CANDIDATES = (
    (Blocks(128, 256, 64), 8, 3),
    (Blocks(128, 128, 64), 8, 3),
    (Blocks(128, 128, 32), 4, 4),
    (Blocks(128, 64, 32), 4, 4),
    (Blocks(64, 128, 32), 4, 4),
    (Blocks(64, 64, 32), 4, 4),
    (Blocks(32, 64, 32), 2, 5),
)

if triton is not None:

    @triton.jit
    def low_rank_kernel(
        x,
        w,
        bias,
        h,
        b,
        y,
        scale,
        rows,
        out,
        inner,
        rank,
        x_row,
        x_col,
        w_row,
        w_col,
        h_row,
        h_col,
        b_row,
        b_col,
        magnitude,
        HAS_BIAS: tl.constexpr,
        PRECISION: tl.constexpr,
        M: tl.constexpr,
        N: tl.constexpr,
        K: tl.constexpr,
        R: tl.constexpr,
    ) -> None:
        """Compute one tile of y, which is contiguous; `magnitude` only tells the autotuner how long the batch is."""
        column_tiles = tl.cdiv(out, N)
        # Eight tiles below each other run at the same time, so that they find W in the cache.
        in_group = 8 * column_tiles
        first = tl.program_id(0) // in_group * 8
        height = min(tl.cdiv(rows, M) - first, 8)
        row_tile = first + tl.program_id(0) % in_group % height
        column_tile = tl.program_id(0) % in_group // height
        m = (row_tile * M + tl.arange(0, M)).to(tl.int64)
        n = (column_tile * N + tl.arange(0, N)).to(tl.int64)
        # Beyond the edge the tile repeats rows and columns, which are computed and not stored: no masks in the loop.
        m_in, n_in = m % rows, n % out
        total = tl.zeros((M, N), dtype=tl.float32)
        for start in range(0, inner, K):
            k = start + tl.arange(0, K)
            valid = k < inner
            left = tl.load(x + m_in[:, None] * x_row + k[None, :] * x_col, mask=valid[None, :], other=0.0)
            right = tl.load(w + n_in[None, :] * w_row + k[:, None] * w_col, mask=valid[:, None], other=0.0)
            total = tl.dot(left, right, total, input_precision=PRECISION)
        low = tl.zeros((M, N), dtype=tl.float32)
        for start in range(0, rank, R):
            r = start + tl.arange(0, R)
            valid = r < rank
            left = tl.load(h + m_in[:, None] * h_row + r[None, :] * h_col, mask=valid[None, :], other=0.0)
            right = tl.load(b + n_in[None, :] * b_row + r[:, None] * b_col, mask=valid[:, None], other=0.0)
            low = tl.dot(left, right, low, input_precision=PRECISION)
        total += scale * low
        if HAS_BIAS:
            total += tl.load(bias + n_in)[None, :].to(tl.float32)
        inside = (m < rows)[:, None] & (n < out)[None, :]
        tl.store(y + m[:, None] * out + n[None, :], total.to(y.dtype.element_ty), mask=inside)

    tuned_kernel = triton.autotune(
        [triton.Config(blocks._asdict(), num_warps=warps, num_stages=stages) for blocks, warps, stages in CANDIDATES],
        key=["magnitude", "out", "inner", "rank", "x_col", "w_col"],
    )(low_rank_kernel)


def triton_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, h: Tensor, B: Tensor, scale: float, blocks: Blocks | None = None
) -> Tensor:
    """Compute x Wᵀ + b + scale · h Bᵀ: (N, in), (out, in), (out,), (N, r), (out, r) -> (N, out); no gradient.

    Args:
        x: input.
        weight: base weight.
        bias: base bias, contiguous, or None.
        h: the input's low-rank projection.
        B: up-projection.
        scale: factor of the low-rank path.
        blocks: sizes of a tile; None to try :data:`CANDIDATES` once per shape and keep the fastest.

    Raises:
        RuntimeError: Triton cannot compile for this device.
    """
    y = x.new_empty(len(x), len(weight))
    if not y.numel():
        return y
    bias_or_any = y if bias is None else bias
    sizes = (*y.shape, x.shape[1], h.shape[1])
    strides = (*x.stride(), *weight.stride(), *h.stride(), *B.stride())
    options = {"HAS_BIAS": bias is not None, "PRECISION": "tf32" if x.is_cuda and _tf32() else "ieee"}
    arguments = (x, weight, bias_or_any, h, B, y, scale, *sizes, *strides, _magnitude(x))
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _launch(blocks, y, arguments, options)
    return y


def _launch(blocks: Blocks | None, y: Tensor, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    if blocks is None:
        tuned_kernel[lambda meta: (triton.cdiv(len(y), meta["M"]) * triton.cdiv(y.shape[1], meta["N"]),)](
            *arguments, **options
        )
    else:
        grid = (triton.cdiv(len(y), blocks.M) * triton.cdiv(y.shape[1], blocks.N),)
        low_rank_kernel[grid](*arguments, **options, **blocks._asdict())


def triton_wins(
    other: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    h: Tensor,
    B: Tensor,
    scale: float,
) -> bool:
    """Tell whether :func:`triton_linear` is faster than `other` on CUDA tensors of this shape, type and layout.

    Both are timed the first time; batches of lengths between the same powers of two count as one shape. While a
    CUDA graph is captured nothing can be timed: what is not known then is left to `other`.
    """
    if triton is None or x.dtype not in TYPES or not x.numel() or torch.version.hip:
        return False
    layout = (x.stride(1) == 1, weight.stride(1) == 1, bias is None)
    key = (x.device, x.dtype, _magnitude(x), *weight.shape, h.shape[1], layout, _tf32())
    if key not in _FASTER:
        if torch.cuda.is_current_stream_capturing():
            return False
        arguments = (x, weight, bias, h, B, scale)
        try:
            _FASTER[key] = _milliseconds(triton_linear, *arguments) < _milliseconds(other, *arguments)
        except Exception as error:  # a missing compiler or an unknown device has many faces; torch always works
            warnings.warn(f"Triton's low-rank kernel is not used: {type(error).__name__}: {error}", stacklevel=2)
            _FASTER[key] = False
    return _FASTER[key]


def _milliseconds(function: Callable[..., Tensor], *arguments: Any) -> float:
    for _ in range(WARM_UP):
        function(*arguments)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPEATS):
        function(*arguments)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _tf32() -> bool:
    """Tell whether fp32 products may use TF32; reading the older ``allow_tf32`` fails once the newer name was set."""
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32


def _magnitude(x: Tensor) -> int:
    """Measure the length of a batch up to a power of two."""
    return len(x).bit_length()
