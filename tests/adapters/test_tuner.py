"""What PEFT's internals must keep doing, and what the shared layer does that no single method shows."""

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers.pytorch_utils import Conv1D

from vision_lowrank.adapters import tuner
from vision_lowrank.adapters.block_lora import BlockLora, BlockLoraConfig
from vision_lowrank.adapters.sora import SoraConfig
from vision_lowrank.adapters.tuner import (
    AdapterLayer,
    adapter_layers,
    check_peft,
    layer_factors,
    register_method,
    tuner_layers,
)
from vision_lowrank.errors import UserError


def attached(model=None, **options):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    model = peft.get_peft_model(model, BlockLoraConfig(**{"target_modules": ["0", "1"], **options}))
    for _, layer in tuner_layers(model):
        nn.init.normal_(layer.weight_update["default"].B)
    return model


@pytest.mark.parametrize("hook", tuner.HOOKS)
def test_a_peft_without_a_hook_is_refused_with_its_name(hook, monkeypatch):
    monkeypatch.delattr(BaseTuner, hook)
    with pytest.raises(UserError, match=hook):
        check_peft()


def test_this_peft_calls_every_hook(tmp_path, monkeypatch):
    called = set()
    for hook in tuner.HOOKS:
        original = getattr(tuner.AdapterTuner, hook)

        def spy(*args, original=original, hook=hook, **kwargs):
            called.add(hook)
            return original(*args, **kwargs)

        monkeypatch.setattr(tuner.AdapterTuner, hook, spy)
    model = attached()
    model.save_pretrained(tmp_path)
    peft.PeftModel.from_pretrained(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), tmp_path)
    assert called == set(tuner.HOOKS)


def test_a_method_of_pefts_own_cannot_be_replaced():
    with pytest.raises(UserError, match="PEFT's own"):
        register_method("loha", BlockLoraConfig, BlockLora)


def test_a_new_method_is_a_config_and_an_update():
    """The promise to authors of methods: these lines suffice for attach, merge and conversion."""
    from dataclasses import dataclass

    from vision_lowrank.adapters.base import AdapterConfig, WeightUpdate

    @dataclass
    class DiagonalConfig(AdapterConfig):
        pass

    class Diagonal(WeightUpdate):
        def __init__(self, weight, config, name):
            super().__init__(config)
            self.d = nn.Parameter(torch.ones(min(weight.shape)))

        def factors(self):
            return None

        def delta(self):
            return self.scale * torch.diag(self.d)

        def forward(self, x):
            return self.scale * self.dropout(x) * self.d

    register_method("test_diagonal", DiagonalConfig, Diagonal)
    base = nn.Sequential(nn.Linear(8, 8))
    model = peft.get_peft_model(base, DiagonalConfig(r=1, alpha=2.0, target_modules=["0"]))
    x = torch.randn(3, 8)
    torch.testing.assert_close(model(x), model.base_model.model[0].base_layer(x) + 2 * x)
    _, state = peft.convert_to_lora(model, rank=8)
    B, A = (next(t for name, t in state.items() if part in name) for part in ("lora_B", "lora_A"))
    torch.testing.assert_close(B @ A, 2 * torch.eye(8))
    before = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), before)


def test_conv1d_stores_its_weight_the_other_way_round():
    model = attached(nn.Sequential(Conv1D(5, 8), nn.Identity()), target_modules=["0"]).double()
    layer = model.base_model.model[0]
    x = torch.randn(3, 8, dtype=torch.float64)
    before = model(x)
    A, B, scale = layer_factors(layer)
    torch.testing.assert_close(before, layer.base_layer(x) + scale * (x @ A.T) @ B.T)
    assert layer.get_delta_weight("default").shape == layer.base_layer.weight.shape == (8, 5)
    model.merge_adapter()
    torch.testing.assert_close(model(x), before)


def test_several_active_adapters_add_up():
    model = attached().double()
    model.add_adapter("second", BlockLoraConfig(r=2, blocks=1, alpha=5, target_modules=["0"]))
    model.double()
    layer = model.base_model.model[0]
    nn.init.normal_(layer.weight_update["second"].B)
    model.base_model.set_adapter(["default", "second"])
    x = torch.randn(3, 8, dtype=torch.float64)
    total = sum(layer.get_delta_weight(name) for name in ("default", "second"))
    expected = layer.base_layer(x) + x @ total.T
    torch.testing.assert_close(layer(x), expected)
    before = layer.base_layer.weight.detach().clone()
    layer.merge(adapter_names=["default"])
    layer.merge(adapter_names=["second"])
    torch.testing.assert_close(layer(x), expected)
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, before)


def test_bfloat16_merge_rounds_once():
    torch.manual_seed(0)
    model = attached(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).bfloat16())
    layer = model.base_model.model[0]
    exact = layer.base_layer.weight.double() + layer.weight_update["default"].delta().double()
    before = layer.base_layer.weight.detach().clone()
    model.merge_adapter()
    assert torch.equal(layer.base_layer.weight, exact.float().bfloat16())
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, before)


def test_disabling_a_merged_model_gives_the_base_bit_for_bit():
    model = attached()
    x = torch.randn(3, 8)
    with model.disable_adapter():
        base = model(x)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(model(x), base)


def test_safe_merge_refuses_values_that_are_not_finite():
    model = attached()
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.weight_update["default"].A[0, 0] = float("nan")
    before = layer.base_layer.weight.detach().clone()
    with pytest.raises(UserError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before)


@pytest.mark.parametrize(
    ("module", "target", "words"),
    [
        (nn.Conv2d(3, 3, 1), "0", "a Conv2d"),
        (nn.MultiheadAttention(8, 2), "out_proj", "split_attention"),
    ],
)
def test_modules_that_cannot_be_adapted_are_named(module, target, words):
    with pytest.raises(UserError, match=words):
        peft.get_peft_model(nn.Sequential(module), BlockLoraConfig(target_modules=[target]))


def test_only_the_adapter_trains_and_extra_modules_on_request():
    model = attached(target_modules=["0"], modules_to_save=["1"])
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name in names if "weight_update" in name]
    assert [name for name in names if "1.modules_to_save" in name]
    assert not [name for name in names if "base_layer" in name]
    assert isinstance(model.base_model.model[0], AdapterLayer)


def test_all_linear_is_known_before_the_weights_are_looked_at():
    model = peft.get_peft_model(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), SoraConfig(r=2, target_modules="all-linear")
    )
    assert [name for name, _ in adapter_layers(model)] == ["base_model.model.0", "base_model.model.1"]
    assert model.peft_config["default"].layers == 2


def test_weights_of_a_second_adapter_are_counted_once():
    config = {"r": 2, "target_modules": r"[01].*"}
    model = peft.get_peft_model(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), SoraConfig(**config))
    model.add_adapter("second", SoraConfig(**config))
    assert model.peft_config["second"].layers == 2


def test_layers_that_share_a_weight_are_not_merged():
    host = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    host[1].weight = host[0].weight
    model = peft.get_peft_model(host, SoraConfig(r=2, target_modules=["0", "1"]))
    with pytest.raises(UserError, match="shares its weight"):
        model.merge_adapter()


def test_what_follows_an_adapted_linear_may_work_in_place():
    host = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True))
    model = peft.get_peft_model(host, SoraConfig(r=2, target_modules=["0"]))
    x = torch.randn(3, 2, 8)
    model(x).sum().backward()
    assert model.base_model.model[0].weight_update["default"].B.grad.any()
