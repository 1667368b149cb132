import math

import numpy as np
import peft
import pytest
import torch
from fixtures.models import trained_parts
from fixtures.phased_task import train
from torch import nn

from vision_lowrank.adapters.sora import Sora, SoraConfig, reference_threshold, soft_threshold
from vision_lowrank.adapters.tuner import adapter_layers
from vision_lowrank.engine.task import Task
from vision_lowrank.errors import UserError
from vision_lowrank.export.lora import export_lora


def update(out_features=7, in_features=9, **options):
    weight = torch.randn(out_features, in_features, dtype=torch.float64)
    return Sora(weight, SoraConfig(**{"r": 4, "alpha": 3.0} | options), "layer")


def trained(**options):
    sora = update(**options)
    nn.init.normal_(sora.B)
    return sora


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x)))


def attached(**options):
    torch.manual_seed(0)
    base = Net().double()
    config = SoraConfig(**{"r": 4, "target_modules": ["fc1", "fc2"]} | options)
    return peft.get_peft_model(base, config, autocast_adapter_dtype=False)


def test_output_is_that_of_gated_lora():
    sora, x = trained(), torch.randn(5, 9, dtype=torch.float64)
    expected = 0.75 * ((x @ sora.A.T) * sora.g) @ sora.B.T
    torch.testing.assert_close(sora(x), expected, rtol=1e-12, atol=1e-12)


def test_gates_start_from_the_standard_normal():
    gates = update(600, 600, r=600).g.detach()
    assert abs(float(gates.mean())) < 0.15
    assert float(gates.std()) == pytest.approx(1, abs=0.1)


def test_at_the_start_only_b_has_a_gradient():
    sora = update()
    assert not sora.delta().any()
    (sora.delta() * torch.randn(7, 9)).sum().backward()
    assert not sora.A.grad.any()
    assert not sora.g.grad.any()
    assert sora.B.grad.abs().min() > 0


def test_soft_threshold_shrinks_by_xi():
    xi = 0.2
    v = torch.tensor([1.5 * xi, xi, -xi, -3 * xi, 0.1 * xi], dtype=torch.float64)
    expected = torch.tensor([0.5 * xi, 0, 0, -2 * xi, 0], dtype=torch.float64)
    torch.testing.assert_close(soft_threshold(v, xi), expected, rtol=0, atol=1e-15)


def test_reference_threshold_is_that_of_three_statements_in_place():
    xi, v = 0.2, torch.linspace(-1, 1, 201, dtype=torch.float64)
    v = torch.cat([v, torch.tensor([xi, -xi, 1.5 * xi])])
    expected = v.clone()
    expected[expected > xi] -= xi
    expected[expected < -xi] += xi
    expected[expected.abs() < xi] = 0
    assert torch.equal(reference_threshold(v, xi), expected)
    assert reference_threshold(torch.tensor([1.5 * xi, xi], dtype=torch.float64), xi).tolist() == [0, xi]


def test_soft_threshold_is_odd_and_does_not_expand():
    v, w = torch.randn(2, 1000, dtype=torch.float64)
    assert torch.equal(soft_threshold(-v, 0.3), -soft_threshold(v, 0.3))
    assert ((soft_threshold(v, 0.3) - soft_threshold(w, 0.3)).abs() <= (v - w).abs() + 1e-15).all()


@pytest.mark.parametrize("options", [{"lam": 0.5}, {"lam": 0.05, "threshold": "constant"}])
def test_gate_without_gradient_reaches_zero_after_v_over_xi_steps(options):
    sora = update(**options)
    values = torch.tensor([0.5, 0.72, -1.03, 0.01], dtype=torch.float64)
    sora.g.data.copy_(values)
    steps = torch.zeros(4, dtype=torch.long)
    for _ in range(30):
        steps += sora.g != 0
        sora.proximal_step(0.1)
    assert steps[1:].tolist() == [math.ceil(v / 0.05) for v in (0.72, 1.03, 0.01)]
    assert not sora.g.any()


def test_proximal_gradient_steps_end_at_the_soft_thresholded_minimum():
    """ISTA on ½‖g - v‖² + lambda ‖g‖₁."""
    sora, eta = update(lam=0.4), 0.3
    v = torch.tensor([1.0, 0.3, -0.9, -0.2], dtype=torch.float64)
    optimizer = torch.optim.SGD([sora.g], eta)
    for _ in range(200):
        optimizer.zero_grad()
        (0.5 * (sora.g - v).square().sum()).backward()
        optimizer.step()
        sora.proximal_step(eta)
    expected = torch.tensor([0.6, 0, -0.5, 0], dtype=torch.float64)
    torch.testing.assert_close(sora.g.detach(), expected, rtol=0, atol=1e-12)


def test_open_gates_and_no_threshold_are_lora_step_for_step():
    sora = update(lam=0.0)
    sora.g.data.fill_(1)
    sora.g.requires_grad_(False)
    A, B = nn.Parameter(sora.A.detach().clone()), nn.Parameter(sora.B.detach().clone())
    target = torch.randn(7, 9, dtype=torch.float64)
    ours, lora = torch.optim.AdamW([sora.A, sora.B], 0.05), torch.optim.AdamW([A, B], 0.05)
    for _ in range(5):
        for optimizer, delta in ((ours, sora.delta), (lora, lambda: 0.75 * B @ A)):
            optimizer.zero_grad()
            (delta() - target).square().sum().backward()
            optimizer.step()
        sora.proximal_step(0.05)
    torch.testing.assert_close(sora.delta(), 0.75 * B @ A, rtol=1e-12, atol=1e-12)


def test_closed_gate_stops_the_gradient_of_its_direction_and_can_open_again():
    sora = trained()
    sora.g.data[2] = 0
    (sora.delta() * torch.randn(7, 9)).sum().backward()
    assert not sora.A.grad[2].any()
    assert not sora.B.grad[:, 2].any()
    assert sora.g.grad[2] != 0


@pytest.mark.parametrize("closed", [(), (0, 3), (0, 1, 2, 3)])
def test_pruned_factors_are_the_same_update_with_fewer_directions(closed):
    sora = trained()
    sora.g.data[list(closed)] = 0
    kept = 4 - len(closed)
    A, B, scale = sora.export_factors()
    assert (A.shape, B.shape, scale) == ((kept, 9), (7, kept), 0.75)
    torch.testing.assert_close(scale * B @ A, sora.delta(), rtol=1e-12, atol=1e-12)
    assert np.linalg.matrix_rank(sora.delta().detach().numpy()) == kept
    assert sora.facts() == {"rank": kept, "largest_rank": 4, "parameters": kept * (9 + 7)}


def test_offset_survives_pruning():
    sora = trained()
    sora.hold_output()
    nn.init.normal_(sora.B)
    sora.g.data[1] = 0
    A, B, scale = sora.export_factors()
    assert len(A) == 7
    torch.testing.assert_close(scale * B @ A, sora.delta(), rtol=1e-12, atol=1e-12)


def test_export_gives_a_plain_lora_with_a_rank_per_layer(tmp_path):
    model, x = attached(), torch.randn(3, 6, dtype=torch.float64)
    for (_, layer), closed in zip(adapter_layers(model), ([0], [1, 2, 3]), strict=True):
        sora = layer.weight_update["default"]
        nn.init.normal_(sora.B)
        sora.g.data[closed] = 0
    report = export_lora(model, tmp_path / "lora")
    assert report.exact
    assert report.ranks == {"fc1": 3, "fc2": 1}
    torch.manual_seed(0)
    plain = peft.PeftModel.from_pretrained(Net().double(), tmp_path / "lora", autocast_adapter_dtype=False)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-9, atol=1e-9)


def test_export_leaves_out_layers_without_open_gates(tmp_path):
    model, x = attached(), torch.randn(3, 6, dtype=torch.float64)
    for _, layer in adapter_layers(model):
        nn.init.normal_(layer.weight_update["default"].B)
    model.base_model.model.fc1.weight_update["default"].g.data.zero_()
    assert export_lora(model, tmp_path / "lora").ranks == {"fc1": 0, "fc2": 4}
    torch.manual_seed(0)
    plain = peft.PeftModel.from_pretrained(Net().double(), tmp_path / "lora", autocast_adapter_dtype=False)
    assert type(plain.base_model.model.fc1) is nn.Linear
    torch.testing.assert_close(plain(x), model(x), rtol=1e-9, atol=1e-9)


def test_saved_gates_keep_their_zeros(tmp_path):
    model = attached()
    for _, layer in adapter_layers(model):
        layer.weight_update["default"].g.data[:2] = 0
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(Net().double(), tmp_path, autocast_adapter_dtype=False)
    for (_, layer), (_, reloaded) in zip(adapter_layers(model), adapter_layers(again), strict=True):
        assert torch.equal(layer.weight_update["default"].g, reloaded.weight_update["default"].g)


def test_gates_are_exempt_from_decay_and_clipping():
    task = Task()
    task.model = attached()
    free = [group for group in task.parameter_groups() if not group["clip"]]
    assert [group["weight_decay"] for group in free] == [0.0]
    assert {p.shape for p in free[0]["params"]} == {torch.Size([4])}


def test_l1_term_is_the_mean_gate_over_all_layers():
    model = attached(l1=0.7)
    losses = [module.extra_losses()["gates"] for module in trained_parts(model)]
    gates = torch.cat([layer.weight_update["default"].g for _, layer in adapter_layers(model)])
    assert len(gates) == 8
    torch.testing.assert_close(sum(losses), 0.7 * gates.abs().mean(), rtol=1e-12, atol=0)
    assert update().extra_losses() == {}


def test_inactive_adapter_keeps_its_gates_and_adds_no_loss():
    model = attached(l1=0.7)
    model.add_adapter("second", SoraConfig(r=4, l1=0.7, target_modules=["fc1", "fc2"]))
    first = model.base_model.model.fc1.weight_update["default"]
    model.set_adapter("second")
    before = first.g.clone()
    first.proximal_step(1.0)
    assert torch.equal(first.g, before)
    assert first.extra_losses() == {}


def test_schedule_has_a_dense_phase_and_one_per_lambda():
    config, sora = SoraConfig(lambdas=[0.1, 0.3]), update(lambdas=[0.1, 0.3])
    assert config.phases() == {"dense": {}, "sparse-1": {}, "sparse-2": {}}
    strengths = [sora.lam]
    for phase in config.phases():
        config.begin_phase({"layer": sora}, phase)
        strengths.append(sora.lam)
    assert strengths == [0.0, 0.0, 0.1, 0.3]
    assert list(SoraConfig().phases()) == ["train"]


@pytest.mark.parametrize("crash_at", [3, 9, 15])
def test_resumed_run_keeps_exact_zeros_and_the_phase(tmp_path, crash_at):
    """Six steps in each of three phases, against a run without the crash."""

    def config():
        return SoraConfig(r=3, lambdas=[0.5, 4.0], target_modules=["fc1", "proj"])

    whole = train(config(), tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        train(config(), tmp_path / "resumed", crash_at)
    resumed = train(config(), tmp_path / "resumed")
    assert [update.lam for update in resumed.updates] == [4.0, 4.0]
    gates = torch.cat([update.g for update in resumed.updates])
    assert 0 < int((gates == 0).sum()) < 6
    state = resumed.trained_state()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.trained_state().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prox": "treu"}, "Did you mean 'true'"),
        ({"threshold": "const"}, "Did you mean 'constant'"),
        ({"lam": -1.0}, "lam = -1.0"),
        ({"l1": -0.1}, "l1 = -0.1"),
        ({"lambdas": [0.2, 0.1]}, "increasing"),
        ({"lambdas": []}, "increasing"),
        ({"r": 8}, "largest r allowed there is 7"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        update(**options)
