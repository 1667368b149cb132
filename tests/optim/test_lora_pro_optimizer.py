"""The optimiser of LoRA-Pro as any user of torch may use it: groups, state, other parameters, damping, refusals."""

import copy
import math

import pytest
import torch
from fixtures.lora_pro_pairs import (
    IN,
    MODES,
    OUT,
    R,
    S,
    equivalent,
    full_gradient,
    give,
    lora_gradients,
    moved,
    optimizer_of,
    pair_of,
    projected,
    projectors,
    solve,
    weight,
)
from torch import nn

from vision_lowrank.errors import UserError
from vision_lowrank.optim.lora_pro_optimizer import LoraProOptimizer, equivalent_gradient, geometries


def test_factor_space_is_torch_adamw_on_the_adjusted_gradients():
    pair = pair_of()
    factors = [nn.Parameter(p.detach().clone()) for p in (pair.A, pair.B)]
    adamw = torch.optim.AdamW(factors, 0.1, weight_decay=0.02)
    optimizer = optimizer_of(pair, 0.1, momentum_space="factor", weight_decay=0.02)
    for _ in range(3):
        g = full_gradient(pair)
        give(pair, g)
        for factor, gradient in zip(factors, solve(pair, g), strict=True):
            factor.grad = gradient
        adamw.step()
        optimizer.step()
        torch.testing.assert_close([pair.A, pair.B], factors, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("damping", ["relative", "absolute"])
def test_damping_adds_to_both_matrices(damping):
    pair = pair_of()
    left, right = geometries([pair], damping, 0.2)[0]
    for found, gram in ((left, pair.B.T @ pair.B), (right, pair.A @ pair.A.T)):
        size = 0.2 * (torch.trace(gram) / R if damping == "relative" else 1.0)
        torch.testing.assert_close(found.inverse, torch.linalg.inv(gram + size * torch.eye(R).double()).detach())


def test_relative_damping_does_not_depend_on_the_size_of_b():
    pair = pair_of()
    small, g = pair._replace(B=1e-4 * pair.B.detach()), full_gradient(pair)
    for damping, eps, kept in (("relative", 1e-6, True), ("absolute", 1e-8, False)):
        e = equivalent_gradient(small, *solve(small, g, eps=eps, damping=damping))
        assert torch.allclose(e, projected(pair, g), rtol=1e-3, atol=1e-3) is kept


def test_factors_of_deficient_rank_give_finite_steps():
    pair = pair_of(r=4)
    with torch.no_grad():
        pair.B[:, 2:] = 0
        pair.A[3] = pair.A[0]
    g = full_gradient(pair)
    for x_mode in MODES:
        torch.testing.assert_close(equivalent(pair, g, x_mode), projected(pair, g), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", ["adamw", "sgd"])
def test_frozen_a_steps_b_alone(variant):
    pair = pair_of()
    pair.A.requires_grad_(False)
    A, g = pair.A.clone(), full_gradient(pair)
    pair.B.grad = lora_gradients(pair, g)[1]
    e = g @ projectors(pair)[1]
    G = e / (e.abs() + 1e-8) if variant == "adamw" else e
    start = weight(pair)
    optimizer = LoraProOptimizer([pair.B], [pair], 1.0, variant=variant, damping_eps=0.0)
    optimizer.step()
    torch.testing.assert_close(start - weight(pair), G @ projectors(pair)[1], rtol=1e-9, atol=1e-9)
    assert torch.equal(pair.A, A)


def test_weight_decay_is_decoupled_and_each_groups_own():
    decayed, plain = pair_of(), None
    plain = copy.deepcopy(decayed)
    groups = [{"params": [decayed.A], "weight_decay": 0.3}, {"params": [decayed.B], "lr": 0.05}]
    optimizer = LoraProOptimizer(groups, [decayed], 0.1, damping_eps=0.0)
    start, g = decayed.A.detach().clone(), full_gradient(decayed)
    give(decayed, g)
    give(plain, g)
    optimizer.step()
    by_A, by_B = moved(plain, optimizer_of(plain, 1.0))
    torch.testing.assert_close(decayed.A.detach(), 0.97 * start - 0.1 * by_A, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(decayed.B.detach(), plain.B.detach() + 0.95 * by_B, rtol=1e-10, atol=1e-10)


HEADS = {
    "adamw": ("adamw", {"betas": (0.8, 0.9)}),
    "momentum": ("sgd", {"momentum": 0.7}),
    "nesterov": ("sgd", {"momentum": 0.7, "nesterov": True}),
}


@pytest.mark.parametrize("name", HEADS)
def test_head_beside_pairs_gets_torchs_own_update(name):
    variant, options = HEADS[name]
    pair, head = pair_of(), nn.Linear(3, 2).double()
    twin, x = copy.deepcopy(head), torch.randn(5, 3).double()
    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    options = options | {"weight_decay": 0.1}
    other = kinds[variant](twin.parameters(), 0.02, **options)
    optimizer = LoraProOptimizer([pair.A, *head.parameters(), pair.B], [pair], 0.02, variant=variant, **options)
    for step in range(3):
        for each, module in ((optimizer, head), (other, twin)):
            each.zero_grad()
            module(x).square().sum().backward()
            each.param_groups[0]["lr"] = 0.02 / (step + 1)
        give(pair, full_gradient(pair))
        optimizer.step()
        other.step()
        assert torch.equal(head.weight, twin.weight)
        assert torch.equal(head.bias, twin.bias)


@pytest.mark.parametrize("options", [{}, {"momentum_space": "factor"}, {"variant": "sgd", "momentum": 0.5}])
def test_saved_state_goes_on_exactly(options):
    pair, head = pair_of(), nn.Parameter(torch.randn(4).double())
    twin, twin_head = copy.deepcopy((pair, head))
    one = LoraProOptimizer([pair.A, pair.B, head], [pair], 0.01, **options)
    other = LoraProOptimizer([twin.A, twin.B, twin_head], [twin], 0.5, **options)

    def step(optimizers):
        g = full_gradient(pair)
        for optimizer, each, vector in optimizers:
            give(each, g)
            vector.grad = g[0, :4].clone()
            optimizer.step()

    for _ in range(2):
        step([(one, pair, head)])
    for old, new in ((pair.A, twin.A), (pair.B, twin.B), (head, twin_head)):
        new.data.copy_(old)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for _ in range(2):
        step([(one, pair, head), (other, twin, twin_head)])
    for old, new in ((pair.A, twin.A), (pair.B, twin.B), (head, twin_head)):
        assert torch.equal(old, new)


def test_momentum_that_nothing_would_have_is_refused():
    pair = pair_of()
    with pytest.raises(UserError, match="that of other parameters, and none train"):
        LoraProOptimizer([pair.A, pair.B], [pair], variant="sgd", momentum=0.9)
    with pytest.raises(UserError, match="momentum is SGD's"):
        LoraProOptimizer([pair.A, pair.B], [pair], momentum=0.9)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_gradient_that_is_not_finite_changes_nothing(bad):
    pairs, head = [pair_of(), pair_of()], nn.Parameter(torch.ones(3).double())
    parameters = [*[p for pair in pairs for p in (pair.A, pair.B)], head]
    optimizer = LoraProOptimizer(parameters, pairs, 0.1, weight_decay=0.1)
    for turn in range(2):
        for pair in pairs:
            give(pair, full_gradient(pair))
        head.grad = torch.ones(3).double()
        if turn == 0:
            optimizer.step()
    pairs[1].B.grad[0, 0] = bad
    before, state = [p.detach().clone() for p in parameters], copy.deepcopy(optimizer.state_dict())
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step()
    for old, new in zip(before, parameters, strict=True):
        assert torch.equal(old, new)
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)


def test_pair_without_gradients_is_left_alone():
    reached, other = pair_of(), pair_of()
    start = other.B.detach().clone()
    give(reached, full_gradient(reached))
    parameters = [p for pair in (reached, other) for p in (pair.A, pair.B)]
    LoraProOptimizer(parameters, [reached, other], 0.1, weight_decay=0.1).step()
    assert torch.equal(other.B, start)


def test_step_returns_what_its_closure_returns():
    pair = pair_of()
    optimizer = optimizer_of(pair, 1e-2, variant="sgd")

    def closure():
        optimizer.zero_grad()
        loss = (S * pair.B @ pair.A).square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


def test_optimizer_refuses_pairs_it_cannot_step():
    pair, other = pair_of(), pair_of()
    both = [pair.A, pair.B, other.A, other.B]
    with pytest.raises(UserError, match="shares a factor"):
        LoraProOptimizer(both, [pair, other._replace(A=pair.A)])
    with pytest.raises(UserError, match="not among the parameters"):
        LoraProOptimizer([pair.A], [pair])
    with pytest.raises(UserError, match="scale of 'layer' is 0"):
        LoraProOptimizer(both, [pair._replace(scale=0.0)])
    half = pair._replace(A=nn.Parameter(pair.A.half()), B=nn.Parameter(pair.B.half()))
    with pytest.raises(UserError, match="float32"):
        LoraProOptimizer([half.A, half.B], [half])
    with pytest.raises(UserError, match="no moments"):
        optimizer_of(pair, variant="sgd", momentum_space="factor")
    with pytest.raises(UserError, match="'sylvestre'"):
        optimizer_of(pair, x_mode="sylvestre")


def test_float32_follows_float64_from_plain_loras_start():
    def path(dtype):
        torch.manual_seed(3)
        pair = pair_of(zero_B=True)
        A, B = (nn.Parameter(p.detach().to(dtype)) for p in (pair.A, pair.B))
        pair = pair._replace(A=A, B=B)
        optimizer = LoraProOptimizer([A, B], [pair], 1e-3)
        target = torch.randn(OUT, IN).to(dtype)
        for _ in range(10):
            give(pair, weight(pair) - target)
            optimizer.step()
        return weight(pair).double()

    exact = path(torch.float64)
    assert (path(torch.float32) - exact).norm() < 1e-3 * exact.norm()
