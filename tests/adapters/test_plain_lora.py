import json
import subprocess
import sys

import numpy as np
import open_clip
import peft
import pytest
import torch
from torch import nn

from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.attention.split import split_attention
from vision_lowrank.errors import UserError


def attached(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    return peft.get_peft_model(model, LoraConfig(target_modules=["0", "1"], **options))


@pytest.mark.parametrize(("scaling", "scale"), [("rslora", 0.5), ("lora", 0.25)])
def test_merged_weight_differs_by_the_scale_times_b_a(scaling, scale):
    model = attached(r=4, alpha=1, scaling=scaling).double()
    layer = model.base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight)
    before = layer.base_layer.weight.detach().clone()
    expected = scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    model.merge_adapter()
    torch.testing.assert_close(layer.base_layer.weight - before, expected, rtol=1e-12, atol=1e-12)
    assert LoraConfig(r=4, scaling=scaling).scale == scale


@pytest.mark.parametrize(
    ("arch", "modules", "count"),
    [
        ("ViT-B-16", ["q_proj", "k_proj", "v_proj"], 184_320),
        ("ViT-B-16", ["q_proj", "k_proj", "v_proj", "out_proj"], 245_760),
        ("ViT-L-14", ["q_proj", "k_proj", "v_proj"], 405_504),
    ],
)
def test_published_parameter_counts_on_clip(arch, modules, count):
    config = open_clip.get_model_config(arch)
    with torch.device("meta"):
        clip = split_attention(open_clip.CLIP(**config))
        model = peft.get_peft_model(clip, LoraConfig(target_modules=modules))
    assert model.get_nb_trainable_parameters()[0] == count


def test_first_step_moves_only_b():
    model = attached(r=2)
    layer = model.base_model.model[0]
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    model(torch.randn(5, 16)).square().sum().backward()
    assert torch.count_nonzero(layer.lora_A["default"].weight.grad) == 0
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    changed = [name for name, p in layer.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["lora_B.default.weight"]


def test_dropout_masks_the_branch_only_and_each_layer_on_its_own():
    model = attached(r=2, dropout=0.5).train()
    x = torch.ones(1, 16)
    torch.testing.assert_close(model.base_model.model[0](x), model.base_model.model[0].base_layer(x), rtol=0, atol=0)
    masks = [layer.lora_dropout["default"](x) for layer in model.base_model.model]
    assert not torch.equal(*masks)
    assert set(masks[0].unique().tolist()) <= {0.0, 2.0}


def test_initialisation_is_uniform_over_one_over_sqrt_in():
    torch.manual_seed(0)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(100, 100)), LoraConfig(r=50, target_modules=["0"]))
    A = model.base_model.model[0].lora_A["default"].weight.detach()
    assert A.abs().max() <= 0.1
    assert float(A.std()) == pytest.approx(0.1 / np.sqrt(3), rel=0.05)


def test_saved_config_loads_where_this_package_is_not(tmp_path):
    model = attached(r=4, alpha=3.0, dropout=0.25)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not {"alpha", "dropout", "scaling"} & values.keys()
    script = (
        "import sys, peft; c = peft.PeftConfig.from_pretrained(sys.argv[1]);"
        "assert not any(name.startswith('vision_lowrank') for name in sys.modules);"
        "print(type(c).__module__, c.r, c.lora_alpha, c.lora_dropout, c.use_rslora)"
    )
    out = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["peft.tuners.lora.config", "4", "3.0", "0.25", "True"]


def test_pefts_own_names_are_not_taken_silently():
    with pytest.raises(TypeError, match="lora_alpha"):
        LoraConfig(lora_alpha=16)


@pytest.mark.parametrize("options", [{"r": 0}, {"dropout": -0.1}, {"scaling": "rs"}])
def test_impossible_options_are_refused(options):
    with pytest.raises(UserError):
        LoraConfig(**options)
