"""Weighted sums of adapters, against Σ w_i ΔW_i in float64 for every method whose ΔW has factors."""

import re
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from fixtures.models import moved
from torch import nn

from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.tuner import METHODS, adapter_layers
from vision_lowrank.errors import UserError
from vision_lowrank.registry import registry

registry.load("adapter")
WITHOUT_FACTORS = {"LOFIT", "MIXLORA", "VISUAL_PROMPT", "KV_PREFIX"}
WITH_FACTORS = sorted(METHODS.keys() - WITHOUT_FACTORS)
NEEDED = {"COMP_LORA": {"protect_rank": 2}, "LAMDA": {"eta": 0}}
WEIGHTS = {"default": 0.7, "other": -1.3}


def host(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 6)).to(dtype)


def config_of(name, r=2, targets=("0", "2")):
    return METHODS[name].config(r=r, **NEEDED.get(name, {}), target_modules=list(targets))


def two(name, r=2, targets=("2", "4")):
    """Two trained adapters of a method, on layers 0 and 2, and on `targets`."""
    torch.manual_seed(1)
    model = moved(peft.get_peft_model(host(), config_of(name)))
    model.add_adapter("other", config_of(name, r, targets))
    model.set_adapter("other")
    moved(model, seed=3)
    model.set_adapter("default")
    return model


@torch.no_grad()
def deltas(model, adapter):
    """ΔW of each layer that has the adapter."""
    layers = adapter_layers(model.base_model.model)
    return {n: layer.weight_update[adapter].delta().numpy() for n, layer in layers if adapter in layer.weight_update}


def expected(model, weights=WEIGHTS):
    """Σ w_i ΔW_i of each layer that has one of the adapters."""
    total = {}
    for adapter, weight in weights.items():
        for name, delta in deltas(model, adapter).items():
            total[name] = total.get(name, 0) + weight * delta
    return total


def close(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", WITH_FACTORS)
def test_cat_is_the_exact_sum_and_goes_through_all_that_adapters_go_through(name, tmp_path):
    model = two(name, r=4)
    x = torch.randn(5, 12, dtype=torch.float64)
    before = model(x)
    model.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "sum", combination_type="cat")
    close(deltas(model, "sum"), expected(model))
    assert torch.equal(model(x), before)  # it is not active yet
    assert not any(parameter.requires_grad for key, parameter in model.named_parameters() if ".sum." in key)

    model.set_adapter("sum")
    summed, reference = model(x), host()
    for key, delta in expected(model).items():
        reference.get_submodule(key).weight.data += torch.from_numpy(delta)
    torch.testing.assert_close(summed, reference(x), rtol=1e-9, atol=1e-9)
    with model.disable_adapter():
        assert torch.equal(model(x), host()(x))

    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    again = peft.PeftModel.from_pretrained(host(), tmp_path / "sum").eval()
    torch.testing.assert_close(again(x), summed, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(again.merge_and_unload()(x), summed, rtol=1e-9, atol=1e-9)

    model.delete_adapter("default")
    model.delete_adapter("other")
    model.set_adapter("sum")
    assert torch.equal(model(x), summed)


def test_cat_of_more_ranks_than_a_layer_has_is_exact_too():
    model = two("OFFSET_LORA", r=5, targets=("0", "2", "4"))
    model.add_adapter("third", config_of("OFFSET_LORA", 6, ("0", "2", "4")))
    model.set_adapter("third")
    moved(model, seed=4)
    weights = WEIGHTS | {"third": 2.0}
    model.add_weighted_adapter(list(weights), list(weights.values()), "sum", combination_type="cat")
    close(deltas(model, "sum"), expected(model, weights))
    ranks = {name: len(layer.weight_update["sum"].A) for name, layer in adapter_layers(model.base_model.model)}
    assert ranks == {"0": 10, "2": 10, "4": 6}


@pytest.mark.parametrize("rank", [None, 2])
def test_svd_is_the_best_of_its_rank(rank):
    model = two("BLOCK_LORA", r=4, targets=("0", "2"))
    model.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "sum", svd_rank=rank)
    for name, delta in expected(model).items():
        U, sigma, Vt = np.linalg.svd(delta, full_matrices=False)
        best = U[:, : rank or 2] * sigma[: rank or 2] @ Vt[: rank or 2]  # block ranks 1 and 2
        np.testing.assert_allclose(deltas(model, "sum")[name], best, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, -2.0])
@pytest.mark.parametrize("how", ["linear", "cat", "svd"])
def test_one_adapter_alone_is_scaled(how, scale):
    model = two("LORA_XS")
    model.add_weighted_adapter(["default"], [scale], "scaled", combination_type=how)
    close(deltas(model, "scaled"), expected(model, {"default": scale}))


@torch.no_grad()
def test_ways_to_add_are_pefts_own():
    """PEFT's LoRA of the same tensors gives the same sum, in all ways without random numbers."""
    ours = two("OFFSET_LORA", targets=("0", "2"))
    theirs = peft.get_peft_model(host(), peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0", "2"]))
    theirs.add_adapter("other", peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0", "2"]))
    for name, layer in adapter_layers(ours.base_model.model):
        for adapter in WEIGHTS:
            A, B, scale = layer.weight_update[adapter].factors()
            lora = theirs.base_model.model.get_submodule(name)
            lora.lora_A[adapter].weight.copy_(A)
            lora.lora_B[adapter].weight.copy_(B)
            lora.scaling[adapter] = scale
    theirs = theirs.double()
    for how in ("linear", "ties", "magnitude_prune", "svd", "ties_svd", "magnitude_prune_svd"):
        options = {"density": 0.5} if how not in ("linear", "svd") else {}
        for model in (ours, theirs):
            model.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), how, combination_type=how, **options)
        for name, layer in adapter_layers(ours.base_model.model):
            wanted = theirs.base_model.model.get_submodule(name).get_delta_weight(how)
            torch.testing.assert_close(layer.weight_update[how].delta(), wanted, rtol=1e-5, atol=1e-6)


def test_dare_keeps_the_expected_number_of_values():
    model = two("OFFSET_LORA", targets=("0", "2"))
    model.add_weighted_adapter(["default"], [1.0], "sparse", combination_type="dare_linear", density=0.25)
    kept = torch.cat([layer.weight_update["sparse"].A.flatten() for _, layer in adapter_layers(model.base_model.model)])
    assert 0 < (kept != 0).float().mean() < 0.6


@pytest.mark.parametrize(("arguments", "words"), [
    ((["default", "other"], [1.0, 1.0], "sum", "cta"), "unknown combination_type 'cta'. Did you mean 'cat'"),
    ((["default", "othr"], [1.0, 1.0], "sum", "cat"), "no adapter 'othr'. Did you mean 'other'"),
    ((["default", "other"], [1.0], "sum", "cat"), "1 weights for 2 different adapters"),
    ((["default", "other"], [1.0, 1.0], "other", "cat"), "already has an adapter 'other'"),
    ((["default", "other"], [1.0, 1.0], "sum", "linear"), "linear adds factors of one rank.*[2, 3].*use cat or svd"),
    ((["default", "other"], [1.0, 1.0], "sum", "ties"), "ties keeps a share of the values: add density"),
])  # fmt: skip
def test_what_cannot_be_added_is_refused_and_changes_nothing(arguments, words):
    model = two("OFFSET_LORA", r=3)
    with pytest.raises(UserError, match=words):
        model.add_weighted_adapter(*arguments)
    assert set(model.peft_config) == {"default", "other"}
    assert all("sum" not in layer.weight_update for _, layer in adapter_layers(model))


def test_methods_without_factors_say_so():
    config = METHODS["MIXLORA"].config(r=2, target_modules=["mlp", "head"])
    model = nn.Sequential()
    model.add_module("mlp", nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)))
    model.add_module("head", nn.Linear(6, 3))
    model = peft.get_peft_model(model, config)
    with pytest.raises(UserError, match="'mlp' has a MixLora, which has no factors to add up: keep its adapters apart"):
        model.add_weighted_adapter(["default"], [2.0], "sum")


def test_biases_and_whole_modules_have_no_sum():
    model = peft.get_peft_model(host(), METHODS["SORA"].config(r=2, target_modules=["0"], bias="all"))
    with pytest.raises(UserError, match="'default' trains biases or whole modules too"):
        model.add_weighted_adapter(["default"], [2.0], "sum")


def test_names_of_layers_are_taken_literally():
    """A layer called `fc` and one called `x.fc` have ranks of their own."""
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(8, 8))
    model.add_module("x", nn.Sequential())
    model.x.add_module("fc", nn.Linear(8, 8))
    config = METHODS["SLORA"].config(r=2, target_modules=["fc"], rank_pattern={re.escape("x.fc"): 3})
    model = peft.get_peft_model(model, config)
    model.add_adapter("other", METHODS["SLORA"].config(r=2, target_modules=["fc"]))
    model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum", combination_type="cat")
    ranks = {name: len(layer.weight_update["sum"].A) for name, layer in adapter_layers(model.base_model.model)}
    assert ranks == {"fc": 4, "x.fc": 5}


@pytest.mark.parametrize("scaling", ["rslora", "lora"])
def test_the_sum_of_plain_loras_is_exact_whatever_their_scale(scaling):
    """PEFT's own code makes it from our config, and knows of alpha / r alone."""
    model = peft.get_peft_model(host(), LoraConfig(r=2, alpha=3, scaling=scaling, target_modules=["0"]))
    model.add_adapter("other", LoraConfig(r=4, alpha=5, scaling=scaling, target_modules=["0"]))
    model = moved(model.double())
    model.set_adapter("other")
    moved(model, seed=3)
    layer = model.base_model.model[0]
    wanted = sum(weight * layer.get_delta_weight(adapter) for adapter, weight in WEIGHTS.items())
    model.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "sum", combination_type="cat")
    torch.testing.assert_close(layer.get_delta_weight("sum"), wanted, rtol=1e-6, atol=1e-7)
    saved = model.peft_config["sum"].to_dict()
    assert (saved["r"], saved["lora_alpha"], saved["use_rslora"]) == (6, 6, False)
    assert model.peft_config["default"].to_dict()["lora_alpha"] == 3
    assert replace(LoraConfig(alpha=3.0), alpha=4.0).lora_alpha == 4
