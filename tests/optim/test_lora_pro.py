"""LoRA-Pro against full gradients, projections and least squares, all written independently, and in the engine."""

import math

import peft
import pytest
import torch
from fixtures.adapted_task import Adapted, rule_of, settings, train
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
from fixtures.small_layers import inputs, layer_of, model
from torch import nn

from vision_lowrank.config.schema import BackboneConfig, RunConfig
from vision_lowrank.engine import Engine, Hook
from vision_lowrank.errors import UserError
from vision_lowrank.optim.lora_pro import LoraPro, create_lora_pro_optimizer
from vision_lowrank.optim.lora_pro_optimizer import LoraProOptimizer, equivalent_gradient
from vision_lowrank.optim.tensors import Pair


def jacobian(pair):
    """d vec(s B A) / d (A, B), dense."""
    A, B = pair.A.detach(), pair.B.detach()
    parts = torch.autograd.functional.jacobian(lambda A, B: pair.scale * B @ A, (A, B))
    return torch.cat([part.reshape(B.shape[0] * A.shape[1], -1) for part in parts], dim=1)


@pytest.mark.parametrize("x_mode", MODES)
def test_equivalent_gradient_is_the_least_squares_optimum(x_mode):
    pair = pair_of()
    g, J = full_gradient(pair), jacobian(pair)
    best = J @ torch.linalg.lstsq(J, g.reshape(-1, 1), driver="gelsd").solution
    e = equivalent(pair, g, x_mode)
    torch.testing.assert_close(e, best.reshape(OUT, IN), rtol=1e-10, atol=1e-10)
    P_B, P_A = projectors(pair)
    rest = (torch.eye(OUT).double() - P_B) @ g @ (torch.eye(IN).double() - P_A)
    assert torch.linalg.norm(e - g) == pytest.approx(float(torch.linalg.norm(rest)), rel=1e-12)


def test_error_is_orthogonal_to_a_step_of_rank_2r():
    pair = pair_of()
    g = full_gradient(pair)
    e = equivalent(pair, g)
    assert abs((e * (g - e)).sum()) < 1e-12
    assert torch.linalg.matrix_rank(e) == 2 * R


def test_sylvester_keeps_closest_to_the_gradients_of_lora():
    pair = pair_of()
    g = full_gradient(pair)
    gA, gB = lora_gradients(pair, g)
    A, B = pair.A.detach(), pair.B.detach()
    a0, b0 = solve(pair, g, "zero")

    def distance(X):
        return (a0 + X @ A - gA).square().sum() + (b0 - B @ X - gB).square().sum()

    X = (solve(pair, g)[0] - a0) @ torch.linalg.pinv(A)
    C = -torch.linalg.inv(B.T @ B) @ gA @ A.T / S**2
    assert (B.T @ B @ X + X @ A @ A.T - C).abs().max() < 1e-12
    slope = torch.autograd.functional.jacobian(distance, X)
    assert slope.abs().max() < 1e-10
    assert distance(X) < distance(torch.zeros(R, R).double())
    torch.testing.assert_close(solve(pair, g)[1], b0 - B @ X, rtol=1e-12, atol=1e-12)


def test_symmetry_takes_the_shared_part_half_from_each_factor():
    pair = pair_of()
    g = full_gradient(pair)
    a, b = solve(pair, g, "symmetry")
    P_B, P_A = projectors(pair)
    shared = P_B @ g @ P_A
    torch.testing.assert_close(S * pair.B.detach() @ a, P_B @ g - shared / 2, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(S * b @ pair.A.detach(), g @ P_A - shared / 2, rtol=1e-10, atol=1e-10)


def test_equivalent_gradient_does_not_depend_on_how_the_product_is_split():
    pair = pair_of()
    g, M = full_gradient(pair), torch.randn(R, R).double()
    other = pair._replace(A=torch.linalg.inv(M) @ pair.A.detach(), B=pair.B.detach() @ M)
    torch.testing.assert_close(equivalent(other, g), equivalent(pair, g), rtol=1e-9, atol=1e-9)
    plain = [equivalent_gradient(each, *lora_gradients(each, g)) for each in (pair, other)]
    assert not torch.allclose(*plain, rtol=1e-2)


def test_equivalent_gradient_does_not_depend_on_the_scale():
    pair = pair_of()
    g = full_gradient(pair)
    torch.testing.assert_close(equivalent(pair._replace(scale=0.03), g), equivalent(pair, g), rtol=1e-10, atol=1e-10)


def test_full_rank_follows_adam_on_the_whole_weight():
    target = torch.randn(4, 3).double()

    def distance(lr):
        torch.manual_seed(1)
        pair = pair_of(out=4, in_=3, r=3)
        whole = nn.Parameter(weight(pair))
        adam, pro = torch.optim.AdamW([whole], lr, weight_decay=0.0), optimizer_of(pair, lr)
        torch.testing.assert_close(equivalent(pair, target), target, rtol=1e-10, atol=1e-10)
        for _ in range(3):
            whole.grad = whole.detach() - target
            give(pair, weight(pair) - target)
            adam.step()
            pro.step()
        return float((weight(pair) - whole.detach()).norm())

    assert distance(1e-4) < 1e-5
    assert distance(2e-4) / distance(1e-4) == pytest.approx(4, rel=0.02)  # O(lr²)


@pytest.mark.parametrize("x_mode", MODES)
@pytest.mark.parametrize("eps", [{}, {"eps": 1e-8, "damping": "absolute"}])
def test_first_step_moves_b_alone(x_mode, eps):
    pair = pair_of(zero_B=True)
    g = full_gradient(pair)
    a, b = solve(pair, g, x_mode, **eps)
    A = pair.A.detach()
    assert not a.any()
    torch.testing.assert_close(b, g @ A.T @ torch.linalg.inv(A @ A.T) / S, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(S * b @ A, g @ projectors(pair)[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("zero_B", [False, True])
def test_adamw_step_is_the_projection_of_adam_on_the_equivalent_gradient(zero_B):
    pair, beta1, beta2 = pair_of(zero_B=zero_B), 0.8, 0.95
    optimizer = optimizer_of(pair, lr=0.5, betas=(beta1, beta2), eps=1e-3)
    M = V = torch.zeros(OUT, IN).double()
    for step in range(1, 4):
        g = full_gradient(pair)
        give(pair, g)
        e = projected(pair, g)
        M, V = beta1 * M + (1 - beta1) * e, beta2 * V + (1 - beta2) * e**2
        G = M / (1 - beta1**step) / ((V / (1 - beta2**step)).sqrt() + 1e-3)
        A, B, expected = pair.A.detach().clone(), pair.B.detach().clone(), projected(pair, G)
        a, b = solve(pair, G)
        by_A, by_B = moved(pair, optimizer)
        torch.testing.assert_close(S * (B @ by_A + by_B @ A) / 0.5, expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close((by_A / 0.5, by_B / 0.5), (a, b), rtol=1e-8, atol=1e-8)
        assert not torch.allclose(expected, projected(pair, g), rtol=0.1)


def test_sgd_is_a_descent_direction_by_the_square_of_its_length():
    pairs = [pair_of(), pair_of(out=5, in_=8, r=2, scale=0.3), pair_of(r=4)]
    gs = [full_gradient(pair) for pair in pairs]
    for pair, g in zip(pairs, gs, strict=True):
        give(pair, g)
    factors = [p for pair in pairs for p in (pair.A, pair.B)]
    before = [p.detach().clone() for p in factors]
    LoraProOptimizer(factors, pairs, 1.0, variant="sgd", damping_eps=0.0).step()
    along = sum(((old - p.detach()) * p.grad).sum() for old, p in zip(before, factors, strict=True))
    for old, p in zip(before, factors, strict=True):
        p.data.copy_(old)
    sizes = sum(projected(pair, g).square().sum() for pair, g in zip(pairs, gs, strict=True))
    assert along > 0
    assert along == pytest.approx(float(sizes), rel=1e-10)


def test_small_steps_move_the_weight_along_the_equivalent_gradient():
    """Each halving of the rate halves the distance to -e."""
    distances = []
    for lr in (2e-4, 1e-4):
        torch.manual_seed(2)
        pair = pair_of()
        g = full_gradient(pair)
        give(pair, g)
        start, e = weight(pair), projected(pair, g)
        optimizer_of(pair, lr, variant="sgd").step()
        distances.append(float(((weight(pair) - start) / lr + e).norm() / e.norm()))
    assert distances[1] < 1e-3
    assert distances[0] / distances[1] == pytest.approx(2, rel=0.01)


def test_step_is_closer_to_full_fine_tuning_than_that_of_lora():
    """Even where LoRA's step may be scaled at will; measured on a layer, after real steps."""
    attached = model(peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False))
    layer, x = layer_of(attached), inputs()
    full = nn.Linear(20, 12).double()
    lora = layer.lora_A.default.weight, layer.lora_B.default.weight
    full.weight.data.copy_(layer.base_layer.weight + layer.get_delta_weight("default"))
    full.bias.data.copy_(layer.base_layer.bias)
    full(x).square().sum().backward()
    g, lr = full.weight.grad, 1e-7

    def step_by(make):
        for p, start in zip(lora, starts, strict=True):
            p.data.copy_(start)
        before = layer.get_delta_weight("default").detach()
        optimizer = make()
        optimizer.zero_grad()
        attached(x).square().sum().backward()
        optimizer.step()
        return (before - layer.get_delta_weight("default").detach()) / lr

    starts = [p.detach().clone() for p in lora]
    plain = step_by(lambda: torch.optim.SGD(lora, lr))
    pro = step_by(lambda: create_lora_pro_optimizer(attached, lr, variant="sgd"))
    best = plain * (plain * g).sum() / plain.square().sum()
    assert (pro - g).norm() < 0.98 * (best - g).norm()
    assert (best - g).norm() <= (plain - g).norm()
    least = g - projected(Pair("", *starts, 1.5, layer), g)
    assert (pro - g).norm() == pytest.approx(float(least.norm()), rel=1e-3)


def test_scale_is_each_layers_own():
    attached = model(peft.LoraConfig(r=4, use_rslora=True, lora_alpha=6, rank_pattern={"1": 2}), layers=2)
    found = {pair.name.rpartition(".")[2]: pair.scale for pair in create_lora_pro_optimizer(attached).pairs}
    assert found == {"0": pytest.approx(6 / 2), "1": pytest.approx(6 / math.sqrt(2))}


def test_peft_model_with_frozen_a_is_accepted_by_lora_pro():
    attached = model(peft.LoraConfig(r=4, init_lora_weights=False))
    layer_of(attached).lora_A.default.weight.requires_grad_(False)
    (pair,) = create_lora_pro_optimizer(attached).pairs
    assert pair.A is layer_of(attached).lora_A.default.weight


def test_what_is_no_pair_is_refused_by_name():
    with pytest.raises(UserError, match=r"'base_model\.model\.0' does not train one pair"):
        create_lora_pro_optimizer(model(peft.LoraConfig(r=4, use_dora=True)))
    with pytest.raises(UserError, match="no adapter trains"):
        create_lora_pro_optimizer(nn.Linear(2, 2))


def test_rule_needs_an_adapter_and_fitting_options():
    run = {"backbone": BackboneConfig(name="tiny-clip"), "task": object(), "data": None}
    with pytest.raises(UserError, match=r"rule lora_pro: .* no adapter trains"):
        RunConfig(**run, rule=LoraPro())
    with pytest.raises(UserError, match="no moments"):
        RunConfig(**run, adapter=object(), rule=LoraPro(variant="sgd", momentum_space="factor"))


class Watched(Hook):
    """What the optimiser is and does, seen from the engine."""

    def __init__(self):
        self.rates, self.optimizers, self.losses = [], set(), []

    def after_step(self, engine):
        self.rates.append([group["lr"] for group in engine.optimizer.param_groups])
        self.optimizers.add(type(engine.optimizer))
        self.losses.append(engine.losses["loss"])


@pytest.mark.parametrize("options", [{}, {"momentum_space": "factor"}, {"variant": "sgd"}])
def test_engine_trains_with_its_schedule_and_clipping(options, tmp_path):
    engine = settings(steps=30, batch_size=12, lr=2e-3, clip_norm=5.0, warmup_steps=5, min_lr=1e-4)
    watched = Watched()
    rule = rule_of({"type": "lora_pro", **options})
    Engine(engine, Adapted(), tmp_path, seed=4, rule=rule, hooks=[watched]).fit()
    assert watched.optimizers == {LoraProOptimizer}
    assert watched.rates[0][0] == pytest.approx(2e-3 / 6)
    assert watched.rates[-1][0] == pytest.approx(1e-4)
    assert watched.losses[-1] < watched.losses[0]


@pytest.mark.parametrize("started", [False, True])
def test_engine_in_float32_from_plain_loras_start(started, tmp_path):
    task = Adapted(dtype=torch.float32, started=started, config=peft.LoraConfig(r=2, target_modules=["second"]))
    before = task.trained_state()["model.base_model.model.second.lora_B.default.weight"].clone()
    engine = train(tmp_path, {"type": "lora_pro"}, task, lr=1e-3, steps=10)
    state = engine.task.trained_state()
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert not torch.equal(state["model.base_model.model.second.lora_B.default.weight"], before)


def test_variant_is_the_engines_optimizer_unless_named(tmp_path):
    by_engine = train(tmp_path / "a", {"type": "lora_pro"}, optimizer="sgd", lr=1e-3)
    by_rule = train(tmp_path / "b", {"type": "lora_pro", "variant": "sgd"}, lr=1e-3)
    for name, tensor in by_engine.task.trained_state().items():
        assert torch.equal(tensor, by_rule.task.trained_state()[name])


def test_engine_refuses_dora_before_it_trains(tmp_path):
    dora = Adapted(peft.LoraConfig(r=2, target_modules=["first"], use_dora=True))
    with pytest.raises(UserError, match="does not train one pair"):
        train(tmp_path, {"type": "lora_pro"}, dora)
