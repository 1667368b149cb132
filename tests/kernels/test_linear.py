"""The fused function against closed forms in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from vision_lowrank.kernels.linear import Branch, _Settings, fused_linear, fused_linears, recompute_dropout, reference

OUTS, RANKS, SCALES, WIDTH = (4, 6, 3), (2, 1, 3), (0.5, 2.0, -1.0), 5
OFFSETS = (0, 2, 1)


def branches(dropout=0.0, dtype=torch.float64, offsets=(0, 0, 0)):
    """Three linears on one input, the second without bias, with offsets of the given ranks."""
    made = []
    for out, r, scale, r0 in zip(OUTS, RANKS, SCALES, offsets, strict=True):
        offset = (torch.randn(r0, WIDTH, dtype=dtype), torch.randn(out, r0, dtype=dtype)) if r0 else None
        weight, bias = torch.randn(out, WIDTH, dtype=dtype), torch.randn(out, dtype=dtype) if out != 6 else None
        A, B = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((r, WIDTH), (out, r)))
        made.append(Branch(weight, bias, A, B, scale, dropout, offset))
    return made


def closed_form(x, branch):
    delta = branch.B @ branch.A + (branch.offset[1] @ branch.offset[0] if branch.offset else 0)
    merged = branch.weight + branch.scale * delta
    return x @ merged.T + (0 if branch.bias is None else branch.bias)


def kept(run):
    """What `run` keeps for the backward pass."""
    tensors = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t) or t, lambda t: t):
        run()
    return tensors


@pytest.mark.parametrize("offsets", [(0, 0, 0), OFFSETS])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3), (2, 1, 3, 2)])
def test_equals_the_merged_weight_for_any_leading_shape(shape, offsets):
    x = torch.randn(*shape, WIDTH, dtype=torch.float64)
    group = branches(offsets=offsets)
    for y, branch in zip(fused_linears(x, group), group, strict=True):
        assert y.shape == (*shape, len(branch.weight))
        torch.testing.assert_close(y, closed_form(x, branch), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(y, fused_linear(x, *branch), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(y, reference(x, branch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("offsets", [(0, 0, 0), (3, 0, 2)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_and_their_gradients_equal_finite_differences(dropout, count, offsets):
    group = branches(dropout, offsets=offsets)[:count]
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64, requires_grad=True)

    def run(x, *factors):
        torch.manual_seed(3)
        changed = [b._replace(A=A, B=B) for b, A, B in zip(group, factors[:count], factors[count:], strict=True)]
        return tuple(fused_linears(x, changed))

    inputs = (x, *(b.A for b in group), *(b.B for b in group))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_output_that_is_not_used_costs_no_gradient():
    group = branches()
    x = torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)
    fused_linears(x, group)[1].sum().backward()
    merged = group[1].weight + 2.0 * group[1].B @ group[1].A
    torch.testing.assert_close(x.grad, merged.sum(dim=0).expand(3, -1), rtol=1e-12, atol=1e-12)
    assert not group[0].A.grad.any()
    assert group[0].B.grad is None
    assert group[1].A.grad.any()


def test_keeps_only_the_input_and_its_projection():
    x = torch.randn(64, WIDTH, dtype=torch.float64, requires_grad=True)
    for dropout, mask in ((0.0, 0), (0.3, x.numel())):
        group = branches(dropout)
        long = [t for t in kept(lambda group=group: fused_linears(x, group)) if 64 in t.shape]
        wide = [t.numel() for t in long if t.dtype == torch.float64]
        assert sorted(wide) == sorted([x.numel(), 64 * sum(RANKS)])
        assert sum(t.nbytes for t in long if t.dtype != torch.float64) == mask


def test_offset_keeps_nothing_of_the_length_of_the_batch():
    x = torch.randn(64, WIDTH, dtype=torch.float64, requires_grad=True)
    group = branches(offsets=(1, 2, 3))
    long = [t for t in kept(lambda: fused_linears(x, group)) if 64 in t.shape]
    assert sorted(t.untyped_storage().nbytes() // 8 for t in long) == sorted([x.numel(), 64 * sum(RANKS)])


def test_offset_that_trains_gets_its_gradient():
    branch = branches(offsets=(2, 0, 0))[0]
    A0 = branch.offset[0].requires_grad_()
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(fused_linear(x, *branch).sum(), A0)
    torch.testing.assert_close(gradient, torch.autograd.grad(closed_form(x, branch).sum(), A0)[0])


@pytest.fixture
def recomputing():
    recompute_dropout(True)
    yield
    recompute_dropout(False)


def test_recomputed_dropout_keeps_no_mask(recomputing):
    x = torch.randn(64, WIDTH, dtype=torch.float64, requires_grad=True)
    group = branches(0.3)
    long = [t for t in kept(lambda: fused_linears(x, group)) if 64 in t.shape]
    assert sorted(t.numel() for t in long) == sorted([x.numel(), 64 * sum(RANKS)])


def test_recomputed_dropout_changes_no_bit(recomputing):
    group = branches(0.4)
    x = torch.randn(20, WIDTH, dtype=torch.float64, requires_grad=True)

    def gradients():
        torch.manual_seed(2)
        total = sum(y.square().sum() for y in fused_linears(x, group))
        return torch.autograd.grad(total, (x, *(b.A for b in group), *(b.B for b in group)))

    recomputed = gradients()
    recompute_dropout(False)
    for one, other in zip(recomputed, gradients(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("p", [1e-9, 0.1, 1 - 1e-9])
def test_dropout_keeps_the_mean_for_every_probability(p):
    # levels of 2⁻¹⁶: what is scaled must be what was drawn, or 0.1 would be off in the mean
    x, A = torch.ones(2000, 400, dtype=torch.float64), torch.ones(1, 400, dtype=torch.float64)
    y = fused_linear(x, torch.zeros(1, 400).double(), None, A, torch.ones(1, 1).double(), 1.0, p)
    assert y.isfinite().all()
    if p < 0.5:
        assert y.mean().item() == pytest.approx(400, rel=2e-3)


def test_keeps_no_input_for_a_frozen_down_projection():
    x = torch.randn(64, WIDTH, dtype=torch.float64, requires_grad=True)
    frozen = [b._replace(A=b.A.detach()) for b in branches()]
    assert [t.numel() for t in kept(lambda: fused_linears(x, frozen)) if 64 in t.shape] == [64 * sum(RANKS)]
    frozen = [b._replace(B=b.B.detach()) for b in branches()]
    assert [t.numel() for t in kept(lambda: fused_linears(x, frozen)) if 64 in t.shape] == [x.numel()]


def test_factors_may_be_results_of_other_operations():
    branch, core = branches()[0], torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, WIDTH, dtype=torch.float64)

    def gradients(function):
        y = function(x, branch._replace(B=branch.B @ core))
        return torch.autograd.grad(y.square().sum(), (branch.A, branch.B, core))

    for one, other in zip(gradients(lambda x, b: fused_linear(x, *b)), gradients(closed_form), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_one_layer_used_twice_adds_its_gradients():
    branch = branches()[0]._replace(weight=torch.randn(WIDTH, WIDTH).double(), bias=None)
    branch = branch._replace(B=torch.randn(WIDTH, 2, dtype=torch.float64, requires_grad=True))
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    twice = torch.autograd.grad(fused_linear(fused_linear(x, *branch), *branch).sum(), (branch.A, branch.B))
    expected = torch.autograd.grad(closed_form(closed_form(x, branch), branch).sum(), (branch.A, branch.B))
    for one, other in zip(twice, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_dropout_drops_the_input_of_the_update_alone_and_keeps_its_mean():
    x, p = torch.ones(400, 50), 0.25
    base, A, B = torch.zeros(1, 50), torch.eye(50), torch.eye(50)
    dropped = fused_linear(x, torch.zeros(50, 50), None, A, B, 1.0, p)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    assert (dropped == 0).float().mean() == pytest.approx(p, abs=0.01)
    untouched = fused_linear(x, base + 1, None, torch.zeros(2, 50), torch.zeros(1, 2), 1.0, p)
    assert torch.equal(untouched, torch.full((400, 1), 50.0))


def test_dropout_follows_the_global_seed_and_checkpointing_replays_it():
    branch = branches(0.5)[0]
    x = torch.randn(20, WIDTH, dtype=torch.float64, requires_grad=True)

    def gradient(run):
        torch.manual_seed(5)
        return torch.autograd.grad(run(x).square().sum(), (x, branch.A, branch.B))

    plain = gradient(lambda x: fused_linear(x, *branch))
    replayed = gradient(lambda x: checkpoint(fused_linear, x, *branch, use_reentrant=False))
    for one, other in zip(plain, replayed, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(fused_linear(x, *branch), fused_linear(x, *branch))


def test_base_weight_that_trains_gets_its_gradient():
    branch = branches()[0]
    weight, bias = branch.weight.requires_grad_(), branch.bias.requires_grad_()
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    fused_linear(x, *branch).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(dim=0).expand(4, -1))
    torch.testing.assert_close(bias.grad, torch.full((4,), 3.0, dtype=torch.float64))


def test_half_precision_base_with_float32_factors_computes_the_update_in_float32():
    wide = branches(dtype=torch.float32)[0]
    half = wide._replace(weight=wide.weight.bfloat16(), bias=wide.bias.bfloat16())
    x = torch.randn(3, WIDTH).bfloat16()
    y = fused_linear(x, *half)
    update = x.float() @ wide.A.T @ wide.B.T * wide.scale
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, (F.linear(x, half.weight, half.bias) + update).bfloat16())


def test_autocast_gives_its_type_and_full_precision_gradients():
    group = branches(dtype=torch.float32)
    x = torch.randn(3, WIDTH, requires_grad=True)
    inputs = [x, *(b.A for b in group), *(b.B for b in group)]
    with torch.autocast("cpu", torch.bfloat16):
        ys = fused_linears(x, group)
    assert {y.dtype for y in ys} == {torch.bfloat16}
    gradients = torch.autograd.grad(sum(y.float().sum() for y in ys), inputs)
    exact = torch.autograd.grad(sum(closed_form(x, b).sum() for b in group), inputs)
    for one, other in zip(gradients, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.1)


def test_compiles_as_one_graph():
    branch = branches(dtype=torch.float32)[0]
    x = torch.randn(3, WIDTH)
    compiled = torch.compile(lambda x: fused_linear(x, *branch), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), closed_form(x, branch))


def test_functional_gradient():
    branch = branches()[0]
    x, A, B = torch.randn(3, WIDTH, dtype=torch.float64), branch.A.detach(), branch.B.detach()
    gradient = torch.func.grad(lambda A: fused_linear(x, *branch._replace(A=A, B=B)).sum())(A)
    expected = branch.scale * B.sum(dim=0)[:, None] * x.sum(dim=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("offsets", [(0, 0, 0), OFFSETS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_factors_beside_half_precision_are_fused_and_lose_nothing(dtype, offsets, dropout, monkeypatch):
    group = [
        branch._replace(weight=branch.weight.to(dtype), bias=None if branch.bias is None else branch.bias.to(dtype))
        for branch in branches(dropout, torch.float32, offsets)
    ]
    x = torch.randn(7, WIDTH).to(dtype).requires_grad_()
    factors = [tensor for branch in group for tensor in (branch.A, branch.B)]
    weights = [torch.randn(7, out) for out in OUTS]
    # The mask that the fused function draws; torch's own dropout would draw another.
    torch.manual_seed(5)
    settings = _Settings(SCALES, dropout, int(torch.randint(2**62, (), device="cpu")) if dropout else 0)
    mask = settings.draw_mask(x.shape, x.device) / settings.keep if dropout else torch.ones(7, WIDTH)
    expected = []
    for branch in group:
        A, B = branch.factors
        update = (x.float() * mask) @ A.T * branch.scale @ B.T
        expected.append((F.linear(x, branch.weight, branch.bias) + update).to(dtype))
    monkeypatch.setattr("vision_lowrank.kernels.linear.reference", lambda *_: pytest.fail("not fused"))
    torch.manual_seed(5)
    kept_types = {
        t.dtype for t in kept(lambda: fused_linears(x, group)) if t.shape == x.shape and t.is_floating_point()
    }
    assert kept_types == {dtype}
    torch.manual_seed(5)
    found = fused_linears(x, group)
    digits = {torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]  # one rounding of the type
    for y, other in zip(found, expected, strict=True):
        assert y.dtype == dtype
        torch.testing.assert_close(y, other, rtol=digits, atol=digits)
    gradients, others = (
        torch.autograd.grad(sum((y * w).sum() for y, w in zip(ys, weights, strict=True)), [x, *factors])
        for ys in (found, expected)
    )
    assert [g.dtype for g in gradients] == [dtype] + [torch.float32] * len(factors)
    torch.testing.assert_close(gradients[0], others[0], rtol=4 * digits, atol=8 * digits)
    for g, other in zip(gradients[1:], others[1:], strict=True):
        torch.testing.assert_close(g, other, rtol=1e-5, atol=1e-5)
