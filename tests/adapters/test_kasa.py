import json
import math

import numpy as np
import peft
import pytest
import torch
from fixtures.models import moved
from torch import nn

from vision_lowrank.adapters.kasa import KasaConfig
from vision_lowrank.adapters.tuner import adapter_layers, report
from vision_lowrank.attachment.attach import attach
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.config import load_config
from vision_lowrank.errors import UserError
from vision_lowrank.studies import run as experiment


def base(*sizes, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(inside, outside) for inside, outside in sizes]).to(dtype)


def attached(model, **options):
    names = [str(i) for i in range(len(model))]
    torch.manual_seed(1)
    return peft.get_peft_model(model, KasaConfig(**{"r": 3, "target_modules": names} | options))


def updates(model):
    return [layer.weight_update["default"] for _, layer in adapter_layers(model)]


def effective_weight(model):
    """Column by column, through the forward, without the bias."""
    layer = model.base_model.model[0]
    with torch.no_grad():
        eye = torch.eye(layer.in_features, dtype=torch.float64)
        return (layer(eye) - layer(torch.zeros_like(eye))).T


SHAPES = pytest.mark.parametrize("shape", [(12, 10), (10, 12), (12, 12)], ids=str)


@SHAPES
def test_the_model_starts_as_the_truncated_base(shape):
    plain = base(shape)
    weight = plain[0].weight.detach().clone()
    model = attached(plain).eval()
    U, S, Vt = np.linalg.svd(weight.numpy(), full_matrices=False)
    kept = (U[:, :-3] * S[:-3]) @ Vt[:-3]
    start = effective_weight(model).numpy()
    np.testing.assert_allclose(start, kept, atol=1e-12)
    assert np.linalg.matrix_rank(start) == min(shape) - 3
    assert np.linalg.norm(weight.numpy() - start) == pytest.approx(math.sqrt((S[-3:] ** 2).sum()), rel=1e-12)
    assert torch.equal(model.base_model.model[0].base_layer.weight, weight)


def test_a_wide_layer_loses_r_components_as_in_peft():
    """The reference code would remove nothing of fc2 of a ViT-Ti, (out 192, in 768)."""
    model = attached(base((768, 192)), r=8)
    assert torch.linalg.matrix_rank(effective_weight(model)) == 184


@SHAPES
@pytest.mark.parametrize("scaling", ["lora", "rslora"])
def test_the_update_is_b_diag_sigma_a_without_the_removed_part(shape, scaling):
    plain = base(shape)
    weight = plain[0].weight.detach().numpy().copy()
    model = moved(attached(plain, alpha=5, scaling=scaling))
    (own,) = updates(model)
    U, S, Vt = np.linalg.svd(weight, full_matrices=False)
    A, sigma, B = (tensor.detach().numpy() for tensor in (own.A, own.sigma, own.B))
    scale = 5 / math.sqrt(3) if scaling == "rslora" else 5 / 3
    expected = (U[:, :-3] * S[:-3]) @ Vt[:-3] + scale * B @ np.diag(sigma) @ A
    np.testing.assert_allclose(effective_weight(model).numpy(), expected, atol=1e-12)


def peft_twin(model, shape, **options):
    """PEFT's KaSA with the same factors on the same weights."""
    config = peft.LoraConfig(
        r=3, lora_alpha=16, target_modules=["0", "1"], kasa_config=peft.KasaConfig(beta=0.3, gamma=0.7), **options
    )
    twin = peft.get_peft_model(base(shape, shape[::-1], dtype=torch.float32), config)
    for own, (_, layer) in zip(updates(model), peft_layers(twin), strict=True):
        layer.lora_A["default"].weight.data.copy_(own.A)
        layer.lora_B["default"].weight.data.copy_(own.B)
        layer.lora_diag["default"].data.copy_(own.sigma)
    return twin.eval()


def peft_layers(model):
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_diag")]


def test_forward_base_and_penalty_are_those_of_pefts_kasa():
    shape = (12, 10)
    options = {"beta": 0.3, "gamma": 0.7, "reduce": "sum"}
    model = moved(attached(base(shape, shape[::-1], dtype=torch.float32), **options))
    twin = peft_twin(model, shape)
    x = torch.randn(5, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x), rtol=1e-5, atol=1e-5)
    for (_, layer), (_, other) in zip(adapter_layers(model), peft_layers(twin), strict=True):
        own = layer.weight_update["default"]
        truncated = layer.base_layer.weight + own.scale * own.offset_B @ own.offset_A
        torch.testing.assert_close(truncated, other.base_layer.weight, rtol=1e-5, atol=1e-6)
    penalty = sum(sum(own.extra_losses().values()) for own in updates(model))
    torch.testing.assert_close(penalty, twin.base_model._get_kasa_loss(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_mean_is_the_sum_divided_by_the_adapted_layers(count):
    sizes = [(12, 10), (10, 12), (12, 11)][:count]
    total = {}
    for reduce in ("sum", "mean"):
        model = moved(attached(base(*sizes), reduce=reduce))
        total[reduce] = sum(loss.item() for own in updates(model) for loss in own.extra_losses().values())
    assert total["mean"] == pytest.approx(total["sum"] / count, rel=1e-12)
    assert total["sum"] > 0


def test_penalty_vanishes_for_orthonormal_factors_and_is_sqrt_r_for_each_zero_factor():
    (own,) = updates(attached(base((12, 10)), beta=0.0, gamma=1.0))
    with torch.no_grad():
        own.A.copy_(torch.linalg.qr(torch.randn(12, 3, dtype=torch.float64))[0].T)
    assert own.extra_losses()["kasa_orthogonality"].item() == pytest.approx(math.sqrt(3), rel=1e-12)
    with torch.no_grad():
        own.B.copy_(torch.eye(10, 3))
        own.A.copy_(torch.eye(3, 12))
    losses = own.extra_losses()
    assert losses["kasa_orthogonality"] == 0
    losses["kasa_orthogonality"].backward()
    assert own.A.grad.isfinite().all()
    assert own.B.grad.isfinite().all()


def test_size_penalty_is_beta_times_the_squared_singular_values():
    (own,) = updates(attached(base((12, 10)), beta=0.5))
    expected = 0.5 * (own.sigma.detach().numpy() ** 2).sum()
    assert own.extra_losses()["kasa_size"].item() == pytest.approx(expected, rel=1e-12)


def test_a_frozen_adapter_adds_no_penalty():
    model = attached(base((12, 10)))
    model.add_adapter("second", KasaConfig(r=2, target_modules=["0"]))
    model.set_adapter("second")
    update = model.base_model.model[0].weight_update
    assert update["default"].extra_losses() == {}
    assert set(update["second"].extra_losses()) == {"kasa_size", "kasa_orthogonality"}


def test_only_b_has_a_gradient_in_the_first_step():
    model = attached(base((12, 10)))
    model(torch.randn(5, 12, dtype=torch.float64)).square().sum().backward()
    (own,) = updates(model)
    assert own.B.grad.abs().max() > 0
    assert torch.count_nonzero(own.A.grad) == torch.count_nonzero(own.sigma.grad) == 0


def test_with_ones_for_sigma_what_is_added_to_the_truncated_base_is_plain_lora():
    model = moved(attached(base((12, 10))))
    (own,) = updates(model)
    with torch.no_grad():
        own.sigma.fill_(1.0)
        removed = own.scale * own.offset_B @ own.offset_A
    lora = peft.get_peft_model(base((12, 10)), peft.LoraConfig(r=3, lora_alpha=16, target_modules=["0"]))
    layer = lora.base_model.model[0]
    layer.base_layer.weight.data += removed
    layer.lora_A["default"].weight.data = own.A.detach()
    layer.lora_B["default"].weight.data = own.B.detach()
    x = torch.randn(5, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), lora.eval()(x), rtol=1e-12, atol=1e-12)


def test_dropout_spares_the_removed_part():
    """B is zero, so with dropout at work the layer still is the truncated base, exactly and always."""
    model = attached(base((12, 10)), dropout=0.5)
    x = torch.randn(5, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = model.eval()(x)
        torch.testing.assert_close(model.train()(x), expected, rtol=1e-12, atol=1e-12)
        nn.init.normal_(updates(model)[0].B)
        assert not torch.allclose(model(x), model(x))


def test_a_bfloat16_base_keeps_its_bits_and_the_removed_part_is_float32():
    plain = base((12, 10), dtype=torch.bfloat16)
    before = plain[0].weight.detach().clone()
    (own,) = updates(attached(plain))
    assert torch.equal(plain[0].base_layer.weight, before)
    rest = before.float() + own.scale * own.offset_B @ own.offset_A
    assert own.offset_A.dtype == torch.float32
    assert torch.linalg.svdvals(rest)[-3:].max() < 1e-5


def test_the_removed_energy_is_reported():
    plain = base((12, 10))
    S = np.linalg.svd(plain[0].weight.detach().numpy(), compute_uv=False)
    (facts,) = report(attached(plain)).values()
    assert facts == {"rank": 3, "removed_energy": pytest.approx((S[-3:] ** 2).sum() / (S**2).sum(), rel=1e-9)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reduce": "men"}, "Did you mean 'mean'?"),
        ({"beta": -1.0}, "beta = -1.0"),
        ({"gamma": -1.0}, "gamma = -1.0"),
        ({"alpha": 0}, "alpha = 0"),
    ],
)
def test_bad_options_are_explained(options, words):
    with pytest.raises(UserError) as error:
        KasaConfig(**options)
    assert words in str(error.value)


def test_a_rank_that_leaves_nothing_of_the_base_is_refused():
    with pytest.raises(UserError, match="the largest r allowed there is 9"):
        attached(base((12, 10)), r=10)


def test_it_attaches_to_a_backbone_and_counts_its_layers():
    torch.manual_seed(0)
    model = attach(load_backbone("tiny-clip", weights="random"), KasaConfig(r=2), towers=("text",), modules=("fc1",))
    own = updates(model)
    assert model.peft_config["default"].adapted_layers == len(own) > 1
    assert own[0].gamma == pytest.approx(1e-3 / len(own))


def test_the_engine_adds_the_penalty_to_the_loss(recipe, tmp_path):
    config = load_config(recipe, ["adapter={type: kasa, r: 2, beta: 0.5}", "seeds=[1]"])
    experiment.run(config)
    (log,) = (tmp_path / "runs").rglob("metrics.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [row for row in rows if any("kasa_size" in key for key in row)]
    assert len(steps) == 4
    for row in steps:  # cross-entropy over three classes at random is about log 3
        assert row["loss"] - row["kasa_size"] - row["kasa_orthogonality"] == pytest.approx(math.log(3), abs=0.6)
        assert row["kasa_size"] > 0.3


def test_a_weight_of_zeros_has_nothing_to_remove():
    plain = nn.Sequential(nn.Linear(6, 4))
    nn.init.zeros_(plain[0].weight)
    model = peft.get_peft_model(plain, KasaConfig(r=2, target_modules=["0"]))
    (facts,) = report(model).values()
    assert facts == {"rank": 2, "removed_energy": 0.0}
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert torch.equal(model(torch.ones(1, 6)), plain[0].base_layer.bias[None])
