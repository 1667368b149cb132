"""GGPO against closed forms in float64, for L = ½ ‖y‖²: dL/dy = y."""

import math

import peft
import pytest
import torch
from fixtures.adapted_task import Adapted, rule_of, train
from fixtures.small_layers import IN, OUT, inputs, layer_of, model
from torch import nn
from transformers.pytorch_utils import Conv1D

import vision_lowrank as vl
from vision_lowrank.adapters.lora import OffsetLoraConfig
from vision_lowrank.config.adapter import AdapterSection
from vision_lowrank.config.schema import EngineConfig, RunConfig
from vision_lowrank.errors import UserError
from vision_lowrank.optim.base import StepContext

SCALE = 0.5


def lora(config=None):
    attached = model(config or vl.LoraConfig(r=4, alpha=1.0))
    for parameter in attached.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return attached


def steps_of(attached, seed=4, index=0, settings=None, **options):
    steps = rule_of({"type": "ggpo", **options}).start(StepContext(attached, settings or EngineConfig(), seed, index))
    steps.prepare()
    return steps


def closure_of(attached, x, seen=None):
    def closure():
        attached.zero_grad()
        y = attached(x)
        if seen is not None:
            seen.append((y.detach(), layer_of(attached).base_layer.weight.clone()))
        (y.square().sum() / 2).backward()
        return {"loss": 0.0}

    return closure


def begun(attached, **options):
    """Steps that have seen the gradients of one plain step."""
    steps = steps_of(attached, **options)
    steps.gradients(closure_of(attached, inputs()))
    steps.after_step(1)
    return steps


def tensors(attached):
    layer = layer_of(attached)
    return layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("through", [True, False])
def test_without_noise_it_is_plain_training_bit_for_bit(through, tmp_path):
    plain = train(tmp_path / "plain", None).task.state_dict()
    options = {"type": "ggpo", "sigma": 0.0, "beta": 0.0, "grad_through_noise": through}
    for name, tensor in train(tmp_path / "rule", options).task.state_dict().items():
        # a hooked layer leaves the fused kernel, which rounds otherwise
        torch.testing.assert_close(tensor, plain[name], rtol=0, atol=0 if through else 1e-14)


@pytest.mark.parametrize("fan", ["in", "out"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("combine", ["sum", "quadrature"])
def test_noise_of_each_row(fan, power, combine):
    attached = lora()
    steps = begun(attached, sigma=0.3, beta=0.02, fan=fan, grad_power=power, combine=combine)
    W, A, B = tensors(attached)
    weight = (W + SCALE * B @ A).norm(dim=1) * 0.3
    gradient = (SCALE * (B @ A.grad + B.grad @ A)).norm(dim=1) ** power * 0.02
    total = weight + gradient if combine == "sum" else torch.hypot(weight, gradient)
    assert gradient.max() > weight.min() / 10  # both parts are seen
    close(steps.std(0, steps.rows[0]), total / math.sqrt({"in": IN, "out": OUT}[fan]))


@pytest.mark.parametrize("through", [True, False])
def test_gradients_are_those_at_the_noisy_weight(through):
    attached = lora()
    steps = begun(attached, sigma=0.5, beta=0.0, grad_through_noise=through)
    W, A, B = (tensor.detach().clone() for tensor in tensors(attached))
    eps = steps.noise(0, steps.std(0, steps.rows[0]))
    x = inputs().requires_grad_()
    steps.gradients(closure_of(attached, x))
    whole = W + SCALE * B @ A
    y = x.detach() @ (whole + eps).T + layer_of(attached).base_layer.bias
    close(tensors(attached)[2].grad, SCALE * y.T @ x.detach() @ A.T)
    close(tensors(attached)[1].grad, SCALE * B.T @ y.T @ x.detach())
    close(x.grad, y @ (whole + eps if through else whole))
    assert eps.abs().max() > 1e-3


@pytest.mark.parametrize("through", [True, False])
def test_weights_and_layers_are_put_back_even_after_a_failure(through):
    attached = lora()
    steps = begun(attached, sigma=0.5, grad_through_noise=through)
    before, usual, seen = layer_of(attached).base_layer.weight.clone(), attached(inputs()), []

    def failing():
        seen.append(attached(inputs()))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        steps.gradients(failing)
    assert not torch.allclose(seen[0], usual)
    assert torch.equal(layer_of(attached).base_layer.weight, before)
    assert torch.equal(attached(inputs()), usual)


def test_draws_have_the_mean_and_the_deviation_of_the_formula():
    attached = lora()
    steps = begun(attached, sigma=0.3, beta=0.01)
    std = steps.std(0, steps.rows[0])
    draws = []
    for steps.step in range(2000):
        draws.append(steps.noise(0, std))
    draws = torch.cat(draws, dim=1)  # (OUT, 40000)
    assert ((draws.mean(dim=1) / std).abs() < 5 / math.sqrt(40_000)).all()
    assert ((draws.std(dim=1) / std - 1).abs() < 5 / math.sqrt(80_000)).all()


def test_larger_rows_get_larger_noise():
    attached = lora()
    steps = begun(attached, sigma=0.3, beta=0.0)
    W, _, B = tensors(attached)
    before = steps.std(0, steps.rows[0])
    with torch.no_grad():
        W[3] *= 2
        B[3] *= 2
    close(steps.std(0, steps.rows[0]) / before, torch.ones(OUT).double().index_fill(0, torch.tensor(3), 2.0))
    steps = begun(attached, sigma=0.0, beta=0.1, grad_power=2)
    close(steps.std(0, 3 * steps.rows[0]), 9 * steps.std(0, steps.rows[0]))


def test_with_weights_alone_and_the_ramp_it_is_flat_lora():
    attached, rho, total = lora(), 0.2, 10
    steps = begun(attached, sigma=rho, beta=0.0, fan="in", ramp="cosine", settings=EngineConfig(steps=total))
    W, A, B = tensors(attached)
    start = W.clone()
    norms = (W + SCALE * B @ A).detach().norm(dim=1, keepdim=True)
    for step in (1, 5, 9):
        steps.step, seen = step, []
        xi = steps.noise(0, torch.ones(OUT, dtype=torch.float64))
        steps.gradients(closure_of(attached, inputs(), seen))
        kappa = (1 - math.cos(math.pi * step / total)) / 2
        close(seen[0][1] - start, kappa * rho * norms / math.sqrt(IN) * xi)


def test_noise_depends_on_its_address_alone():
    attached, std = lora(), torch.ones(OUT, dtype=torch.float64)
    state = torch.get_rng_state()
    reference = steps_of(attached).noise(0, std)
    assert torch.equal(steps_of(attached).noise(0, std), reference)
    assert not torch.allclose(steps_of(attached, seed=5).noise(0, std), reference)
    assert not torch.allclose(steps_of(attached, index=1).noise(0, std), reference)
    later = steps_of(attached)
    later.step = 1
    assert not torch.allclose(later.noise(0, std), reference)
    assert torch.equal(torch.get_rng_state(), state)
    several = steps_of(model(vl.LoraConfig(r=4), layers=3))
    assert not torch.allclose(several.noise(0, std), several.noise(2, std))


@pytest.mark.parametrize("through", [True, False])
def test_all_calls_of_a_step_see_the_same_noise(through):
    attached, outputs = lora(), []
    steps = begun(attached, sigma=0.5, grad_through_noise=through)
    steps.gradients(lambda: outputs.extend(attached(inputs()).detach() for _ in range(2)) or {})
    assert torch.equal(*outputs)


def test_first_step_is_plain_and_gradients_that_are_not_finite_are_forgotten():
    attached, seen = lora(), []
    start = layer_of(attached).base_layer.weight.clone()
    steps = steps_of(attached, sigma=0.5)
    steps.gradients(closure_of(attached, inputs() * math.inf, seen))
    steps.after_step(1)
    assert steps.rows is None
    steps.gradients(closure_of(attached, inputs(), seen))
    steps.after_step(2)
    kept = steps.rows
    steps.gradients(closure_of(attached, inputs() * math.inf, seen))
    steps.after_step(3)
    assert steps.rows is kept
    assert steps.step == 3
    assert [torch.equal(weight, start) for _, weight in seen] == [True, True, False]


def test_gradients_count_as_clipped_and_at_the_factors_before_the_step(tmp_path):
    start = Adapted()
    free, clipped = (
        train(tmp_path / str(limit), {"type": "ggpo"}, steps=1, clip_norm=limit, batch_size=12)
        for limit in (None, 0.01)
    )
    loss = start.training_step({"x": start.data.x, "y": start.data.y})["loss"]
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in start.parameters() if p.grad is not None])
    assert norm > 0.1
    for name, own, small in zip(("first", "second"), free.steps.rows, clipped.steps.rows, strict=True):
        layer = start.model.base_model.model.get_submodule(name)
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        G = layer.scaling["default"] * (B @ A.grad + B.grad @ A)
        torch.testing.assert_close(own, G.norm(dim=1), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(small, own * 0.01 / norm, rtol=1e-4, atol=0)


def test_state_goes_on_where_it_stopped():
    attached = lora()
    steps = begun(attached, sigma=0.5)
    again = steps_of(attached, sigma=0.5)
    again.load_state_dict(steps.state_dict())
    outputs = []
    for each in (steps, again):
        each.gradients(closure_of(attached, inputs(), outputs))
    assert torch.equal(outputs[0][0], outputs[1][0])
    fresh = steps_of(attached)
    fresh.load_state_dict(steps_of(attached).state_dict())
    assert fresh.rows is None


def test_offset_and_transposed_weights():
    torch.manual_seed(0)
    host = nn.Sequential(Conv1D(OUT, IN)).double()
    attached = peft.get_peft_model(host, OffsetLoraConfig(r=4, alpha=1.0, target_modules=["0"])).double()
    layer = layer_of(attached)
    update, start = layer.weight_update["default"], layer.base_layer.weight.clone()
    nn.init.normal_(update.B)
    update.hold_output()
    nn.init.normal_(update.B)
    steps, seen = begun(attached, sigma=0.3, beta=0.0), []
    steps.gradients(closure_of(attached, inputs(), seen))
    std = 0.3 * (start.T + update.delta().detach()).norm(dim=1) / math.sqrt(IN)
    close(seen[0][1].T - start.T, steps.noise(0, std))
    assert torch.equal(layer.base_layer.weight, start)


@pytest.mark.parametrize(
    ("attached", "settings", "options", "words"),
    [
        (nn.Linear(2, 2), {}, {}, "no adapter"),
        (model(vl.BlockLoraConfig(r=4, blocks=2)), {}, {}, "one pair"),
        (model(vl.LoraConfig(r=4)), {"compile": True}, {"grad_through_noise": False}, r"engine\.compile=false"),
    ],
)
def test_what_does_not_fit_is_refused(attached, settings, options, words):
    with pytest.raises(UserError, match=words):
        steps_of(attached, settings=EngineConfig(**settings), **options)


@pytest.mark.parametrize(
    ("adapter", "rule", "words"),
    [
        (None, {}, "no adapter trains"),
        (AdapterSection(type="lora"), {"grad_through_noise": False}, r"engine\.compile=false"),
    ],
)
def test_refused_before_anything_is_loaded(adapter, rule, words):
    settings = EngineConfig(compile=True)
    with pytest.raises(UserError, match=words):
        RunConfig(
            backbone={"name": "tiny-clip"},
            task={},
            data={},
            adapter=adapter,
            rule=rule_of({"type": "ggpo", **rule}),
            engine=settings,
        )
