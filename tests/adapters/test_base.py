"""What PEFT's own code finds in configs of ours, and what of PEFT's options they have."""

import json

import peft
import pytest
import torch
from fixtures.models import moved
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from torch import nn

from vision_lowrank import BlockLoraConfig
from vision_lowrank.adapters.base import AdapterConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.tuner import METHODS, adapter_layers
from vision_lowrank.errors import UserError
from vision_lowrank.registry import registry

registry.load("adapter")
# MixLoRA wants whole MLPs, which this model has none of; the adapter contract has it.
WITH_RANK = [
    name for name, method in sorted(METHODS.items()) if issubclass(method.config, AdapterConfig) and name != "MIXLORA"
]
TARGETS = ["first", "second"]
# What a method needs beside its rank to be put on linears of 12 features.
NEEDED = {"COMP_LORA": {"protect_rank": 4}, "LAMDA": {"eta": 0}}


class Pair(nn.Module):
    """Two linears, one after the other."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x):
        return self.second(self.first(x))


class Stack(nn.Module):
    """Two pairs, as layers with numbers inside a model, where PEFT looks for numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([Pair(), Pair()])

    def forward(self, x):
        for layer in self.model.layers:
            x = layer(x)
        return x


def config_of(name, **options):
    return METHODS[name].config(**NEEDED.get(name, {}), target_modules=TARGETS, **options)


def updates(config):
    torch.manual_seed(1)
    layers = adapter_layers(peft.get_peft_model(Stack(), config))
    return {name.partition("layers.")[2]: layer.weight_update["default"] for name, layer in layers}


def test_a_peft_type_has_the_value_that_clients_of_peft_read():
    config = BlockLoraConfig(r=2, target_modules=["first"])
    assert config.peft_type == config.peft_type.value == config.peft_type.name == "BLOCK_LORA"
    assert type(config.peft_type.value) is str
    status = peft.get_model_status(peft.get_peft_model(Stack(), config))
    assert (status.peft_types, status.active_adapters) == ({"default": "BLOCK_LORA"}, ["default"])
    assert json.loads(json.dumps(config.to_dict(), default=list))["peft_type"] == "BLOCK_LORA"


@pytest.mark.parametrize("name", WITH_RANK)
def test_patterns_give_a_layer_its_own_rank_and_alpha(name):
    small, large = updates(config_of(name, r=2, alpha=3.0)), updates(config_of(name, r=4, alpha=8.0))
    mixed = updates(
        config_of(name, r=2, alpha=3.0, rank_pattern={r"layers.1.second": 4}, alpha_pattern={r"1\.sec.*": 8.0})
    )
    assert mixed.keys() == small.keys() == {"0.first", "0.second", "1.first", "1.second"}
    for layer, update in mixed.items():
        expected = large[layer] if layer == "1.second" else small[layer]
        assert [p.shape for p in update.parameters()] == [p.shape for p in expected.parameters()], layer
        assert update.scale == expected.scale, layer
    assert small["1.second"].scale != large["1.second"].scale


def test_a_pattern_is_checked_as_the_rank_is():
    with pytest.raises(UserError, match="r = 3 is not divisible by blocks = 2"):
        peft.get_peft_model(Stack(), BlockLoraConfig(r=2, target_modules=TARGETS, rank_pattern={"second": 3}))


@pytest.mark.parametrize("name", WITH_RANK)
def test_numbers_of_layers_choose_targets(name):
    assert updates(config_of(name, r=2, layers_to_transform=[1])).keys() == {"1.first", "1.second"}
    assert updates(config_of(name, r=2, layers_to_transform=0, layers_pattern="layers")).keys() == {
        "0.first",
        "0.second",
    }


@pytest.mark.parametrize("bias", ["all", "block_lora_only"])
@torch.no_grad()
def test_biases_of_the_base_train_and_are_saved(bias, tmp_path):
    config = BlockLoraConfig(r=2, target_modules=["first"], bias=bias)
    model = moved(peft.get_peft_model(Stack(), config))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len([name for name in trained if name.endswith("bias")]) == (4 if bias == "all" else 2)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(Stack(), tmp_path)
    x = torch.randn(3, 12)
    assert torch.equal(again(x), model(x))
    assert not torch.equal(model(x), Stack()(x))


def test_an_unknown_bias_is_refused():
    with pytest.raises(UserError, match=r"unknown bias 'lora_only'.*Known: none, all, block_lora_only"):
        BlockLoraConfig(bias="lora_only")


def test_a_pattern_leaves_what_a_config_counted_as_it_was():
    """SoRA divides its penalty by the number of layers, which is known before the first layer is made."""
    mixed = updates(config_of("SORA", r=2, l1=1.0, rank_pattern={"1.second": 4}))
    assert {layer: update.l1 for layer, update in mixed.items()} == {
        "0.first": 1 / 8, "0.second": 1 / 8, "1.first": 1 / 8, "1.second": 1 / 16
    }  # fmt: skip


def test_mixlora_hands_its_ledger_to_experts_of_another_rank():
    host = nn.Sequential()
    for name in ("one", "two"):
        host.add_module(name, nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)))
    config = METHODS["MIXLORA"].config(r=2, target_modules=["one", "two"], rank_pattern={"two": 4})
    one, two = (layer.weight_update["default"] for _, layer in adapter_layers(peft.get_peft_model(host, config)))
    assert (one.A1.shape[1], two.A1.shape[1]) == (2, 4)
    assert one.ledger is two.ledger is config.ledger


@pytest.mark.parametrize("name", WITH_RANK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_loading_with_little_memory_gives_the_same(name, dtype, tmp_path):
    """With tensors that are empty until they are loaded, from a file of half precision too."""
    model = moved(peft.get_peft_model(Stack().to(dtype), config_of(name, r=2)))
    model.save_pretrained(tmp_path)
    if dtype == torch.bfloat16:
        file = tmp_path / "adapter_model.safetensors"
        halves = {key: t.half() if t.is_floating_point() else t for key, t in load_file(file).items()}
        save_file(halves, file)
    x = torch.randn(3, 12, dtype=dtype)
    plain = peft.PeftModel.from_pretrained(Stack().to(dtype), tmp_path).eval()
    lean = peft.PeftModel.from_pretrained(Stack().to(dtype), tmp_path, low_cpu_mem_usage=True).eval()
    tensors = [*lean.parameters(), *lean.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert [tensor.dtype for tensor in tensors] == [tensor.dtype for tensor in (*plain.parameters(), *plain.buffers())]
    torch.testing.assert_close(dict(lean.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(lean(x), plain(x))  # tensors of a file lie elsewhere in memory, so rounding differs
    assert (lean(x) - Stack().to(dtype)(x)).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["BLOCK_LORA", "SORA"])
def test_what_peft_has_for_its_own_methods_alone_is_refused_in_one_line(name, tmp_path):
    """Hot-swapping reads tensors by LoRA's names, and mixed models take a list of PEFT's own types."""
    config = config_of(name, r=2)
    model = peft.get_peft_model(Stack(), config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^Hotswapping only supports LORA but {name} was passed.$"):
        hotswap_adapter(model, str(tmp_path), "default")
    with pytest.raises(ValueError, match=f"^The provided `peft_type` '{name}' is not compatible with") as error:
        peft.get_peft_model(Stack(), config, mixed=True)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_lora_is_hot_swapped_and_mixed(tmp_path):
    x = torch.randn(3, 12)
    old, new = (moved(peft.get_peft_model(Stack(), LoraConfig(target_modules=TARGETS)), seed) for seed in (2, 3))
    new.save_pretrained(tmp_path)
    hotswap_adapter(old, str(tmp_path), "default")
    assert torch.equal(old(x), new(x))
    mixed = peft.get_peft_model(Stack(), LoraConfig(target_modules=["first"]), mixed=True)
    mixed.add_adapter("other", peft.LoHaConfig(target_modules=["second"], init_weights=False))
    mixed.set_adapter(["default", "other"])
    assert not torch.equal(mixed.eval()(x), Stack()(x))
