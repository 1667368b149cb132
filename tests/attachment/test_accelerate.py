"""PEFT's LoRA layers on the fused kernel: the same results, and PEFT's own path for all that the kernel is not."""

import copy
import warnings

import peft
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vision_lowrank as vl
from vision_lowrank.attachment.accelerate import FusedLoraLinear, accelerate_peft
from vision_lowrank.attention.split import split_attention
from vision_lowrank.engine.cost import peak_bytes

LINEARS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def lora_vit(dtype=torch.float64, **options):
    torch.manual_seed(0)
    vit = split_attention(
        VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(**{"r": 4, "target_modules": LINEARS, "lora_alpha": 6, **options})
        model = peft.get_peft_model(vit, config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def pictures(dtype=torch.float64):
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def gradients(model):
    model.zero_grad()
    model(pictures()).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def kernels(model):
    """Names of the layers of `model` whose output comes from the fused function."""
    found, x = [], torch.randn(2, 32, dtype=torch.float64)
    for name, layer in model.named_modules():
        if isinstance(layer, FusedLoraLinear):
            y = layer(x if layer.in_features == 32 else x.repeat(1, 4))
            found += [name.rpartition(".")[2]] * (type(y.grad_fn).__name__ == "_LowRankLinearsBackward")
    return found


def test_outputs_and_gradients_are_pefts_within_rounding():
    model = lora_vit()
    output, before = model(pictures()), gradients(model)
    assert accelerate_peft(model) == 12
    assert len(kernels(model)) == 12
    torch.testing.assert_close(model(pictures()), output, rtol=1e-10, atol=1e-10)
    after = gradients(model)
    assert after.keys() == before.keys()
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-9, atol=1e-10)


def test_less_memory_than_pefts_own_layers():
    model = lora_vit(torch.float32)
    own = peak_bytes(lambda: model(pictures(torch.float32)).sum().backward())
    accelerate_peft(model)
    model.zero_grad()
    assert peak_bytes(lambda: model(pictures(torch.float32)).sum().backward()) < own


def test_checkpoints_and_names_are_the_same(tmp_path):
    model = lora_vit()
    names = list(model.state_dict())
    accelerate_peft(model)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(lora_vit().unload(), tmp_path)
    torch.testing.assert_close(again(pictures()), model(pictures()), rtol=1e-6, atol=1e-6)
    assert accelerate_peft(copy.deepcopy(model)) == 12


def test_merging_disabling_and_deleting_work_as_before():
    model = lora_vit()
    accelerate_peft(model)
    output = model(pictures())
    with model.disable_adapter():
        base = model(pictures())
    torch.testing.assert_close(base, lora_vit().unload()(pictures()), rtol=1e-12, atol=1e-12)
    model.merge_adapter()
    assert not kernels(model)
    torch.testing.assert_close(model(pictures()), output, rtol=1e-9, atol=1e-9)
    model.unmerge_adapter()
    torch.testing.assert_close(model.merge_and_unload()(pictures()), output, rtol=1e-9, atol=1e-9)


def test_second_adapter_switches_and_both_together_are_pefts():
    model = lora_vit()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.double()
    outputs = {}
    for accelerated in (False, True):
        for names in (["default"], ["second"], ["default", "second"]):
            model.base_model.set_adapter(names)
            y = model(pictures())
            torch.testing.assert_close(outputs.setdefault(tuple(names), y), y, rtol=1e-10, atol=1e-10)
        if not accelerated:
            accelerate_peft(model)
    assert sorted(set(kernels(model))) == sorted(set(LINEARS) - {"q_proj"})


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True, "target_modules": LINEARS}])
def test_variants_and_biases_stay_on_pefts_own_path(options):
    model = lora_vit(**options)
    output = model(pictures())
    count = accelerate_peft(model)
    assert count == (0 if "use_dora" in options else 12)
    assert not kernels(model)
    assert torch.equal(model(pictures()), output)


def test_batch_of_mixed_adapters_stays_on_pefts_own_path():
    model = lora_vit().eval()
    names = ["default", "__base__"]
    before = model(pictures(), adapter_names=names)
    accelerate_peft(model)
    assert torch.equal(model(pictures(), adapter_names=names), before)


def test_float32_adapter_on_a_half_precision_base_is_pefts_result():
    model = lora_vit(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    before = model(pictures(torch.bfloat16))
    accelerate_peft(model)
    assert model(pictures(torch.bfloat16)).dtype == torch.bfloat16
    torch.testing.assert_close(model(pictures(torch.bfloat16)), before, rtol=0.02, atol=0.02)


def test_dropout_is_off_in_evaluation_and_replayed_under_a_seed_in_training():
    model = lora_vit(lora_dropout=0.3)
    expected = model.eval()(pictures())
    accelerate_peft(model)
    torch.testing.assert_close(model(pictures()), expected, rtol=1e-10, atol=1e-10)
    model.train()
    assert not torch.equal(model(pictures()), model(pictures()))
    runs = []
    for _ in range(2):
        torch.manual_seed(4)
        runs.append(gradients(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_linear_that_trains_itself_still_gets_its_gradient():
    model = lora_vit(bias="all")
    before = gradients(model)
    accelerate_peft(model)
    after = gradients(model)
    assert any(name.endswith("fc1.base_layer.bias") for name in before)
    assert after.keys() == before.keys()
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-9, atol=1e-10)


def test_attach_and_the_public_name_accelerate():
    model = vl.attach(vl.load_backbone("tiny-clip", weights="random"), vl.LoraConfig(r=2), layers=[0])
    layers = [module for module in model.modules() if isinstance(module, FusedLoraLinear)]
    assert len(layers) == vl.accelerate_peft(model) == 6


def test_model_without_lora_is_refused_with_the_remedy():
    with pytest.raises(vl.UserError, match=r"Linear has no LoRA layer of PEFT.*get_peft_model"):
        accelerate_peft(nn.Linear(2, 2))
