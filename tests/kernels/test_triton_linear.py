"""The Triton kernel against float64, in Triton's interpreter on the CPU, and on a GPU where there is one."""

import os
import subprocess
import sys

import pytest
import torch

from vision_lowrank.kernels.linear import Branch, fused_linear
from vision_lowrank.kernels.triton_linear import CANDIDATES, Blocks, triton, triton_linear

# (N, in, out, r): smaller than a tile, not a multiple of it, more tiles than one group, and a rank of two blocks.
SHAPES = [(1, 5, 3, 2), (16, 16, 16, 16), (37, 40, 24, 8), (150, 17, 35, 20)]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}

needs_triton = pytest.mark.skipif(triton is None, reason="no Triton on this system")


def worst_error(dtype, shape, device="cpu", blocks=None):
    """Largest error relative to the largest output, over bias or none, and layouts as in the gradient."""
    rows, inner, out, r = shape
    x, weight, bias, h, B = (
        torch.randn(size, device=device).to(dtype)
        for size in ((rows, inner), (out, inner), (out,), (rows, r), (out, r))
    )
    errors = []
    for given in (bias, None):
        turned = weight.T.contiguous().T, h.T.contiguous().T, B.T.contiguous().T
        for each in ((weight, h, B), turned):
            y = triton_linear(x, each[0], given, *each[1:], 0.5, blocks)
            exact = x.double() @ weight.double().T + 0.5 * h.double() @ B.double().T
            exact = exact if given is None else exact + given.double()
            errors.append(float((y.double() - exact).abs().max() / exact.abs().max()))
    return max(errors)


@needs_triton
def test_interpreted_kernel_equals_float64():
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = [line.split() for line in done.stdout.splitlines()]
    assert len(errors) == 2 * len(SHAPES)
    for dtype, error in errors:
        assert float(error) < TOLERANCES[getattr(torch, dtype)], (dtype, error)


def test_works_without_triton():
    program = """
import sys
sys.modules["triton"] = None
import torch
from vision_lowrank.kernels.linear import fused_linear
from vision_lowrank.kernels.triton_linear import triton, triton_wins
x, W, A, B = torch.randn(3, 4), torch.randn(5, 4), torch.randn(2, 4), torch.randn(5, 2)
torch.testing.assert_close(fused_linear(x, W, None, A, B, 0.5), x @ (W + 0.5 * B @ A).T)
assert triton is None and not triton_wins(None, x, W, None, x @ A.T, B, 0.5)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_kernel_on_a_gpu_equals_float64(dtype):
    for shape in [*SHAPES, (1576, 384, 1536, 8)]:
        assert worst_error(dtype, shape, "cuda") < TOLERANCES[dtype]
        for blocks, _, _ in CANDIDATES[2:]:
            assert worst_error(dtype, shape, "cuda", blocks) < TOLERANCES[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_step_on_a_gpu_equals_the_merged_weight_whichever_is_faster(dtype):
    x = torch.randn(8, 197, 384, device="cuda", dtype=dtype, requires_grad=True)
    weight, bias = (
        torch.randn(1536, 384, device="cuda", dtype=dtype) / 20,
        torch.randn(1536, device="cuda", dtype=dtype),
    )
    A = (torch.randn(8, 384, device="cuda", dtype=dtype) / 20).requires_grad_()
    B = (torch.randn(1536, 8, device="cuda", dtype=dtype) / 3).requires_grad_()
    g = torch.randn(8, 197, 1536, device="cuda", dtype=dtype)
    y = fused_linear(x, *Branch(weight, bias, A, B, 0.5))
    wide = [t.detach().double().requires_grad_() for t in (x, A, B)]
    exact = wide[0] @ (weight.double() + 0.5 * wide[2] @ wide[1]).T + bias.double()
    ours = [y, *torch.autograd.grad(y, (x, A, B), g)]
    for one, other in zip(ours, [exact, *torch.autograd.grad(exact, wide, g.double())], strict=True):
        assert (one.double() - other).abs().max() / other.abs().max() < TOLERANCES[dtype]


if __name__ == "__main__":
    torch.manual_seed(0)
    for kind in (torch.float32, torch.float16):  # its interpreter multiplies the bits of bfloat16 as integers
        for size in SHAPES:
            print(str(kind).removeprefix("torch."), worst_error(kind, size, blocks=Blocks(16, 16, 16)))
