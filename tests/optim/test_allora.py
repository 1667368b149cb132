"""ALLoRA against closed forms in float64: L = Σ w · y, so that dL/dy = w (N, out)."""

import math

import peft
import pytest
import torch
from fixtures.adapted_task import Adapted, rule_of, train
from fixtures.small_layers import IN, OUT, inputs, layer_of, model, update_of
from pydantic import ValidationError
from torch import nn

import vision_lowrank as vl
from vision_lowrank.adapters.lora import OffsetLoraConfig
from vision_lowrank.config.adapter import AdapterSection
from vision_lowrank.config.schema import EngineConfig, RunConfig
from vision_lowrank.errors import UserError
from vision_lowrank.optim.allora import row_scales
from vision_lowrank.optim.base import StepContext

ETA = 3.0
UNIT = {"r": 4, "alpha": 4.0, "scaling": "lora"}  # scale 1
W_OUT = torch.randn(7, OUT, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def lora(started=True, **options):
    return move(model(vl.LoraConfig(**UNIT | options)), started)


def move(attached, started=True):
    """Every trained tensor away from its start."""
    for parameter in attached.parameters():
        if parameter.requires_grad and started:
            nn.init.normal_(parameter)
    return attached


def steps_of(attached, **options):
    steps = rule_of({"type": "allora", "eta": ETA} | options).start(StepContext(attached, EngineConfig(), 0, 0))
    steps.prepare()
    return steps


def outcome(attached, steps=None, x=None):
    """Output, gradient of the input, and gradients of the trained tensors; with the rule where `steps` are given."""
    x = (inputs() if x is None else x).requires_grad_()
    outputs = []

    def closure():
        attached.zero_grad()
        outputs.append(attached(x))
        (W_OUT * outputs[0]).sum().backward()
        return {"loss": 0.0}

    steps.gradients(closure) if steps else closure()
    return outputs[0].detach(), x.grad, [p.grad for p in attached.parameters() if p.requires_grad]


def factors(attached):
    layer = layer_of(attached)
    return [
        t.detach() for t in (layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    ]


def scales(delta, eta=ETA):
    """c written out, number by number."""
    norms = [math.sqrt(sum(value**2 for value in row)) for row in delta.tolist()]
    return torch.tensor([1 / math.sqrt(norm + 1 / eta**2) for norm in norms], dtype=torch.float64)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_forward_is_loras_and_the_inputs_gradient_is_the_true_one():
    attached = lora()
    W, A, B = factors(attached)
    y, gx, _ = outcome(attached)
    ruled_y, ruled_gx, _ = outcome(attached, steps_of(attached))
    close(ruled_y, y)
    close(ruled_gx, gx)
    close(ruled_gx, W_OUT @ (W + B @ A))


def test_gradients_of_the_factors():
    attached = lora()
    _, A, B = factors(attached)
    c, x = scales(B @ A), inputs()
    _, _, (plain_A, plain_B) = outcome(attached)
    _, _, (gA, gB) = outcome(attached, steps_of(attached))
    close(gB, c[:, None] * plain_B)
    close(gA, B.T @ (c * W_OUT).T @ x)
    assert not torch.allclose(gA / gA.norm(), plain_A / plain_A.norm(), rtol=1e-2, atol=1e-2)


def test_start_is_the_base_bit_for_bit_and_learns_at_eta():
    attached = lora(started=False)
    with attached.disable_adapter():
        base = attached(inputs()).detach()
    _, _, (_, plain_B) = outcome(attached)
    y, _, (gA, gB) = outcome(attached, steps_of(attached))
    assert torch.equal(y, base)
    assert not gA.any()
    close(gB, ETA * plain_B)


def test_first_sgd_step_is_loras_with_eta_times_the_rate(tmp_path):
    start = Adapted(rule="allora", started=False)
    options = {"optimizer": "sgd", "weight_decay": 0.0, "steps": 1, "schedule": "constant"}
    ruled = train(tmp_path / "rule", {"type": "allora", "eta": ETA}, Adapted(rule="allora", started=False), **options)
    plain = train(tmp_path / "plain", None, Adapted(rule="allora", started=False), lr=0.05 * ETA, **options)
    before, one, other = (dict(task.named_parameters()) for task in (start, ruled.task, plain.task))
    moved = [name for name in before if "lora_B" in name]
    assert moved
    for name in moved:
        assert not torch.equal(one[name], before[name])
        close(one[name], other[name])


def test_scale_falls_with_the_norm_itself():
    rows = torch.randn(50, 6, dtype=torch.float64)
    rows = rows[rows.norm(dim=1).argsort()]
    c = row_scales(rows, ETA)
    close(c, scales(rows))
    assert (c[1:] < c[:-1]).all()
    assert (c < ETA).all()
    far = row_scales(torch.stack([rows[0] * 1e8, rows[0] * 1e10]), ETA)
    assert (far[1] / far[0]).log10() / 2 == pytest.approx(-0.5, abs=1e-6)
    assert row_scales(torch.zeros(3, 2), 1e4).tolist() == pytest.approx([1e4] * 3)


def test_scales_are_constants_of_at_least_float32():
    assert row_scales(torch.ones(3, 2, requires_grad=True), ETA).grad_fn is None
    assert row_scales(torch.ones(3, 2, dtype=torch.bfloat16), ETA).dtype == torch.float32
    assert row_scales(torch.ones(3, 2, dtype=torch.float64), ETA).dtype == torch.float64


@pytest.mark.parametrize("eta", [0.0, -1.0, math.inf, math.nan])
def test_eta_is_positive_and_finite(eta):
    with pytest.raises(ValidationError, match="eta"):
        rule_of({"type": "allora", "eta": eta})


class Function(torch.autograd.Function):
    """Form (i): an autograd function with two uses of the gradient that arrives."""

    @staticmethod
    def forward(ctx, x, W, A, B, c):
        ctx.save_for_backward(x, W, A, B, c)
        return x @ (W + B @ A).T

    @staticmethod
    def backward(ctx, delta):
        x, W, A, B, c = ctx.saved_tensors
        scaled = delta * c
        return delta @ (W + B @ A), None, B.T @ scaled.T @ x, scaled.T @ (x @ A.T), None


def detached(x, W, A, B, c):
    """Form (ii): the low-rank product once for the input's gradient and once, scaled, for the factors'."""
    own = c * (x.detach() @ A.T @ B.T)
    return x @ W.T + x @ A.detach().T @ B.detach().T + (own - own.detach())


@pytest.mark.parametrize("form", [Function.apply, detached])
def test_other_forms_agree(form):
    attached = lora()
    W, A, B = factors(attached)
    y, gx, own = outcome(attached, steps_of(attached))
    x, A, B = inputs().requires_grad_(), A.requires_grad_(), B.requires_grad_()
    other = form(x, W, A, B, scales(B @ A))
    close(other + layer_of(attached).base_layer.bias, y)
    for one, gradient in zip(torch.autograd.grad((W_OUT * other).sum(), (x, A, B)), (gx, *own), strict=True):
        close(one, gradient)


@pytest.mark.parametrize(
    "config",
    [
        OffsetLoraConfig(**UNIT),
        vl.BlockLoraConfig(blocks=2, **UNIT),
        vl.CompLoraConfig(**UNIT),
        vl.LoraXsConfig(**UNIT),
        vl.SoraConfig(**UNIT),
        vl.KasaConfig(**UNIT),
        vl.LolduConfig(**UNIT),
    ],
    ids=lambda config: config.method,
)
def test_any_parametrisation_of_delta(config):
    attached = model(config)
    with torch.no_grad():
        for parameter in attached.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    update = update_of(attached)
    y, gx, _ = outcome(attached)
    ruled_y, ruled_gx, gradients = outcome(attached, steps_of(attached))
    delta = update.delta()
    upstream = scales(delta)[:, None] * (W_OUT.T @ inputs())
    trained = [p for p in attached.parameters() if p.requires_grad]
    expected = torch.autograd.grad(delta, trained, upstream)
    torch.testing.assert_close((ruled_y, ruled_gx), (y, gx), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, list(expected), rtol=1e-10, atol=1e-10)


def test_queries_keys_and_values_keep_their_own_rows():
    torch.manual_seed(0)
    attention = vl.split_attention(nn.MultiheadAttention(8, 2, batch_first=True)).double()
    attached = move(
        peft.get_peft_model(attention, vl.LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"], **UNIT))
    )
    vl.accelerate_peft(attached)
    x = torch.randn(3, 5, 8, dtype=torch.float64)

    def closure():
        attached.zero_grad()
        attached(x, x, x)[0].square().sum().backward()
        return {}

    closure()
    layers = [attached.get_submodule(f"base_model.model.{name}_proj") for name in "qkv"]
    plain = [layer.lora_B["default"].weight.grad for layer in layers]
    steps_of(attached).gradients(closure)
    for layer, gradient in zip(layers, plain, strict=True):
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        close(B.grad, scales(B @ A)[:, None] * gradient)


def test_adam_forgets_a_constant_scale_and_sgd_does_not(tmp_path):
    def largest(optimizer, eta):
        plain = train(tmp_path / f"{optimizer}{eta}", None, Adapted(rule="allora"), optimizer=optimizer).task
        ruled = train(tmp_path / f"{optimizer}{eta}-rule", {"type": "allora", "eta": eta}, optimizer=optimizer).task
        pairs = zip(plain.trained_state().items(), ruled.trained_state().values(), strict=True)
        return max(float((one - other).abs().max()) for (name, one), other in pairs if "lora" in name)

    # 1 / eta² = 1e4 leaves c constant within 1e-4
    assert largest("adamw", 0.01) < 1e-3
    assert largest("sgd", 0.01) > 1e-2


def test_layers_are_their_own_outside_gradients_even_after_a_failure():
    attached = lora()
    steps, layer = steps_of(attached), layer_of(attached)
    usual = attached(inputs())

    def failing():
        assert "forward" in layer.__dict__
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        steps.gradients(failing)
    steps.prepare()  # the next stage
    assert "forward" not in layer.__dict__
    assert torch.equal(attached(inputs()), usual)
    merged = attached.merge_and_unload()
    close(merged(inputs()), usual)


def test_disabled_and_merged_layers_are_the_bases_own():
    attached = lora()
    seen = {}

    def closure():
        with attached.disable_adapter():
            seen["disabled"] = attached(inputs())
        attached.merge_adapter()
        seen["merged"] = attached(inputs())
        attached.unmerge_adapter()
        return {}

    with attached.disable_adapter():
        base = attached(inputs())
    usual = attached(inputs())
    steps_of(attached).gradients(closure)
    assert torch.equal(seen["disabled"], base)
    close(seen["merged"], usual)


def test_autocast_does_not_swallow_a_small_delta():
    attached = lora().float()
    layer = layer_of(attached)
    with torch.no_grad():
        layer.base_layer.weight.fill_(1.0)
        layer.base_layer.bias.zero_()
        layer.lora_B["default"].weight.fill_(1e-3)
        layer.lora_A["default"].weight.copy_(torch.full((4, IN), 0.25) * torch.tensor([1.0, -1.0] * (IN // 2)))
    x = torch.tensor([[1.0, -1.0] * (IN // 2)])  # x W = 0, x ΔW = IN / 1000
    with torch.autocast("cpu", torch.bfloat16):
        seen = []
        steps_of(attached).gradients(lambda: seen.append(attached(x)) or {})
    torch.testing.assert_close(seen[0].float(), torch.full((1, OUT), IN * 1e-3), rtol=1e-2, atol=0)


def test_update_rescales_bs_step_alone(tmp_path):
    options = {"steps": 1, "weight_decay": 0.1}
    start = dict(Adapted(rule="allora").named_parameters())
    plain = dict(train(tmp_path / "plain", None, Adapted(rule="allora"), **options).task.named_parameters())
    rule = {"type": "allora", "eta": ETA, "apply": "update"}
    ruled = dict(train(tmp_path / "rule", rule, **options).task.named_parameters())
    for name, after in ruled.items():
        expected = plain[name]
        if "lora_B" in name:
            A, B = start[name.replace("lora_B", "lora_A")], start[name]
            expected = B + scales(B @ A)[:, None] * (plain[name] - B)
            assert not torch.allclose(expected, plain[name])
        close(after, expected)


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (vl.LoraConfig(r=4, alpha=1.0), {}, r"scale 0\.5.*sqrt\(r\).*rslora"),
        (vl.SoraConfig(r=4, alpha=8.0), {}, "scale 2.*or to r with scaling=lora"),
        (vl.LoraConfig(dropout=0.1, **UNIT), {}, "dropout=0"),
        (vl.BlockLoraConfig(dropout=0.1, **UNIT), {}, "dropout=0"),
        (vl.LoraConfig(use_dora=True, **UNIT), {}, "'base_model.model.0' cannot give ΔW"),
        (vl.RandLoraConfig(r=4), {}, "cannot give ΔW"),
        (vl.BlockLoraConfig(blocks=2, **UNIT), {"apply": "update"}, "one pair"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(config, options, words):
    with pytest.raises(UserError, match=words):
        steps_of(model(config), **options)


def test_scale_of_the_papers_own_root_is_accepted():
    steps_of(model(vl.LoraConfig(r=2, alpha=1.4142)))


def test_without_adapter_there_is_nothing_to_do():
    with pytest.raises(UserError, match="no adapter"):
        steps_of(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (None, "no adapter trains"),
        ({"type": "lora", "dropout": 0.25}, r"adapter\.dropout = 0\.25"),
        ({"type": "peft", "name": "LORA", "lora_dropout": 0.25}, r"adapter\.lora_dropout = 0\.25"),
    ],
)
def test_refused_before_anything_is_loaded(adapter, words):
    section = adapter and AdapterSection(**adapter)
    with pytest.raises(UserError, match=words):
        RunConfig(backbone={"name": "tiny-clip"}, task={}, data={}, adapter=section, rule=rule_of({"type": "allora"}))
