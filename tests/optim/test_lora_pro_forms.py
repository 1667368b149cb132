"""LoRA-Pro where something else than a plain pair of matrices trains: LoRA-XS's core, and convolutions."""

import peft
import pytest
import torch
from fixtures.adapted_task import Adapted, train
from fixtures.lora_pro_pairs import full_gradient, pair_of, projectors
from fixtures.small_layers import inputs, layer_of, model, update_of
from torch import nn

import vision_lowrank as vl
from vision_lowrank.errors import UserError
from vision_lowrank.optim.lora_pro import create_lora_pro_optimizer
from vision_lowrank.optim.lora_pro_optimizer import LoraProOptimizer
from vision_lowrank.optim.tensors import pairs


def cored(scale=1.7):
    """A pair with a trained R between frozen factors."""
    pair = pair_of(scale=scale)
    core = nn.Parameter(torch.randn(2, 2, dtype=torch.float64))
    return pair._replace(A=pair.A.detach(), B=pair.B.detach(), core=core)


def give(pair, g):
    pair.core.grad = pair.scale * pair.B.T @ g @ pair.A.T


def weight(pair):
    return (pair.scale * pair.B @ pair.core @ pair.A).detach()


def projected(pair, g):
    P_B, P_A = projectors(pair)
    return P_B @ g @ P_A


def optimizer_of(pair, lr=1.0, **options):
    return LoraProOptimizer([pair.core], [pair], lr, damping_eps=0.0, **options)


def step(pair, optimizer):
    """-(change of W)."""
    before = weight(pair)
    optimizer.step()
    return before - weight(pair)


@pytest.mark.parametrize("scale", [1.7, 0.03])
def test_core_moves_the_weight_along_the_least_squares_optimum(scale):
    pair = cored(scale)
    g = full_gradient(pair)
    J = torch.autograd.functional.jacobian(lambda R: pair.scale * pair.B @ R @ pair.A, pair.core.detach())
    J = J.reshape(g.numel(), -1)
    best = J @ torch.linalg.lstsq(J, g.reshape(-1, 1), driver="gelsd").solution
    give(pair, g)
    e = step(pair, optimizer_of(pair, variant="sgd"))
    torch.testing.assert_close(e, best.reshape(g.shape), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(e, projected(pair, g), rtol=1e-10, atol=1e-10)


def test_adamw_of_a_core_is_the_projection_of_adam_on_its_equivalent_gradient():
    pair, beta1, beta2 = cored(), 0.8, 0.95
    optimizer = optimizer_of(pair, lr=0.5, betas=(beta1, beta2), eps=1e-3)
    M = V = torch.zeros_like(weight(pair))
    for t in range(1, 4):
        g = full_gradient(pair)
        give(pair, g)
        e = projected(pair, g)
        M, V = beta1 * M + (1 - beta1) * e, beta2 * V + (1 - beta2) * e**2
        G = M / (1 - beta1**t) / ((V / (1 - beta2**t)).sqrt() + 1e-3)
        torch.testing.assert_close(step(pair, optimizer), 0.5 * projected(pair, G), rtol=1e-9, atol=1e-9)


def test_factor_space_of_a_core_is_torchs_adamw_on_the_adjusted_gradient():
    pair = cored()
    twin = nn.Parameter(pair.core.detach().clone())
    adamw = torch.optim.AdamW([twin], 0.1, weight_decay=0.02)
    optimizer = optimizer_of(pair, 0.1, momentum_space="factor", weight_decay=0.02)
    for _ in range(3):
        g = full_gradient(pair)
        give(pair, g)
        twin.grad = torch.linalg.pinv(pair.B) @ g @ torch.linalg.pinv(pair.A) / pair.scale
        adamw.step()
        optimizer.step()
        torch.testing.assert_close(pair.core, twin, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("factors", ["svd", "random"])
def test_lora_xs_follows_the_gradient_of_its_layers_weight(factors):
    attached = model(vl.LoraXsConfig(r=4, factors=factors, alpha=6.0))
    layer, update = layer_of(attached), update_of(attached)
    full = nn.Linear(20, 12).double()
    full.weight.data.copy_(layer.base_layer.weight + update.delta())
    full.bias.data.copy_(layer.base_layer.bias)
    full(inputs()).square().sum().backward()
    before, lr = update.delta().detach(), 1e-3
    optimizer = create_lora_pro_optimizer(attached, lr, variant="sgd", damping_eps=0.0)
    attached(inputs()).square().sum().backward()
    optimizer.step()
    (pair,) = optimizer.pairs
    assert pair.core is update.core
    moved = (before - update.delta().detach()) / lr
    torch.testing.assert_close(moved, projected(pair, full.weight.grad), rtol=1e-6, atol=1e-6)


def test_lora_xs_trains_in_the_engine_and_its_state_is_saved(tmp_path):
    task = Adapted(vl.LoraXsConfig(r=2, target_modules=["first", "second"]))
    before = task.trained_state()
    before = {name: tensor.clone() for name, tensor in before.items() if name.endswith(".core")}
    engine = train(tmp_path, {"type": "lora_pro"}, task, lr=1e-2)
    assert len(before) == 2
    for name, tensor in before.items():
        assert not torch.equal(engine.task.trained_state()[name], tensor)
    moments = {id(p): engine.optimizer.state[p]["exp_avg"].shape for p in engine.optimizer.state if p.shape == (2, 2)}
    assert set(moments.values()) == {(8, 3), (8, 8)}  # of the whole weights


def convolution(**options):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, **options)).double()
    config = peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, target_modules=["0"])
    return peft.get_peft_model(base, config)


def pictures():
    return torch.randn(3, 4, 7, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_follows_the_gradient_of_its_kernel(layout):
    attached = convolution().to(memory_format=layout)
    layer = layer_of(attached)
    full = nn.Conv2d(4, 6, 3, stride=2, padding=1).double()
    full.weight.data.copy_(layer.base_layer.weight + layer.get_delta_weight("default"))
    full.bias.data.copy_(layer.base_layer.bias)
    full(pictures()).square().sum().backward()
    g = full.weight.grad.flatten(1)
    before, lr = layer.get_delta_weight("default").detach(), 1e-7
    A, B = (factor.weight.detach().flatten(1) for factor in (layer.lora_A.default, layer.lora_B.default))
    optimizer = create_lora_pro_optimizer(attached, lr, variant="sgd", damping_eps=0.0)
    attached(pictures()).square().sum().backward()
    optimizer.step()
    moved = (before - layer.get_delta_weight("default").detach()).flatten(1) / lr
    P_B, P_A = B @ torch.linalg.pinv(B), torch.linalg.pinv(A) @ A
    expected = P_B @ g + (g - P_B @ g) @ P_A
    assert (moved - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("options", [{}, {"momentum_space": "factor"}, {"x_mode": "symmetry"}])
def test_convolution_is_the_linear_of_its_flattened_kernel(options):
    attached = convolution()
    optimizer = create_lora_pro_optimizer(attached, 0.05, weight_decay=0.1, **options)
    (pair,) = optimizer.pairs
    flat = pair._replace(**{n: nn.Parameter(t.detach().clone()) for n, t in zip("AB", pair.matrices, strict=True)})
    other = LoraProOptimizer([flat.A, flat.B], [flat], 0.05, weight_decay=0.1, **options)
    for _ in range(3):
        optimizer.zero_grad()
        attached(pictures()).square().sum().backward()
        flat.A.grad, flat.B.grad = pair.A.grad.flatten(1).clone(), pair.B.grad.flatten(1).clone()
        optimizer.step()
        other.step()
        torch.testing.assert_close(pair.matrices, (flat.A, flat.B), rtol=1e-12, atol=1e-12)


def test_what_has_no_form_is_refused_by_name():
    for config in (vl.SloraConfig(r=4), vl.LamdaConfig(r=4)):
        with pytest.raises(UserError, match=r"'base_model\.model\.0' does not train one pair"):
            create_lora_pro_optimizer(model(config))
    with pytest.warns(UserWarning, match="groups"), pytest.raises(UserError, match="does not train one pair"):
        create_lora_pro_optimizer(convolution(groups=2))
    pair = cored()
    with pytest.raises(UserError, match="R of 'layer' is frozen"):
        LoraProOptimizer([pair.A], [pair._replace(core=pair.core.detach())])


def test_other_rules_keep_to_pairs_of_matrices():
    for attached in (model(vl.LoraXsConfig(r=4)), convolution()):
        with pytest.raises(UserError, match="does not train one pair B A alone"):
            pairs(attached)
