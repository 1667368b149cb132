"""Places that an adapter is asked to take: everything, or a mistake with its cause and its remedy."""

import pytest
import torch
from torch import nn

import vision_lowrank as vl
from vision_lowrank.adapters.tuner import tuner_layers
from vision_lowrank.errors import UserError
from vision_lowrank.targets.coverage import coverage

SMALL = {
    "tiny-clip": {},
    "timm:swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2), "img_size": 56},
    "timm:beit_base_patch16_224": {"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 32},
    "timm:convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "timm:resnet10t": {},
}
CONVOLUTIONAL = ("timm:convnext_atto", "timm:resnet10t")  # this ConvNeXt has 1 x 1 convolutions for linears


def backbone(name="tiny-clip"):
    torch.manual_seed(0)
    return vl.load_backbone(name, weights="random", **SMALL[name]).eval()


@pytest.mark.parametrize("name", SMALL)
def test_all_takes_every_layer_that_can_learn_on_any_backbone(name):
    model = vl.attach(backbone(name), vl.LoraConfig(r=1), modules="all")
    report = coverage(model)
    assert not report.dead
    kinds = {type(layer.get_base_layer()) for _, layer in tuner_layers(model)}
    assert (nn.Conv2d if name in CONVOLUTIONAL else nn.Linear) in kinds
    assert model.attachments["default"].modules == ("all",)


def test_all_of_a_clip_is_every_linear_of_its_blocks():
    base = vl.split_attention(backbone())
    blocks = [base.get_submodule(path) for tower in base.towers.values() for path in tower.blocks]
    expected = sum(isinstance(module, nn.Linear) for block in blocks for module in block.modules())
    assert len(tuner_layers(vl.attach(base, vl.BlockLoraConfig(r=2), modules=("all",)))) == expected


def test_methods_for_linears_say_so_where_there_are_none():
    with pytest.raises(UserError, match=r"finds no linear in vision of 'timm:resnet10t'.*use lora"):
        vl.attach(backbone("timm:resnet10t"), vl.BlockLoraConfig(r=2), modules="all")


@pytest.mark.parametrize(("config", "where", "words"), [
    (vl.BlockLoraConfig(modules_to_save=["ln_pots"]), {}, r"no module 'ln_pots'\. Did you mean 'ln_post'"),
    (vl.LoraConfig(modules_to_save=["mlp"]), {"modules": ("fc1",)}, "modules_to_save and a target"),
    (vl.LoraConfig(r=2000, target_modules=["q_proj"]), {}, "r = 2000 is too large for"),
    (vl.LoraConfig(target_modules=["q_proj"], rank_pattern={"q_proj": 2000}), {}, "r = 2000 is too large for"),
    (vl.LoraConfig(target_modules=["attn"]), {}, "whole attention: target its linears"),
    (vl.BlockLoraConfig(target_modules=["attn"]), {}, "whole attention: target its linears"),
    (vl.LoraConfig(), {"layers": 3}, r"write \[3\] for that block"),
    (vl.LoraConfig(), {"layers": [1, "2"]}, "'2', which is no block number"),
])  # fmt: skip
def test_mistakes_name_their_cause_and_remedy(config, where, words):
    base = backbone()
    with pytest.raises(UserError, match=words):
        vl.attach(base, config, **where)
    assert not tuner_layers(base)


def test_a_tower_without_such_a_module_names_those_that_it_has():
    with pytest.raises(UserError, match=r"no module 'q'.* Known: .*fc1.*\[all\]"):
        vl.attach(backbone("timm:swin_tiny_patch4_window7_224"), vl.LoraConfig())


def test_a_picture_tower_without_blocks_is_not_passed_over():
    base = vl.load_backbone("open_clip:RN50", weights="random")
    with pytest.raises(UserError, match=r"would get no adapter: use modules: \[all\].*towers: \[text\]"):
        vl.attach(base, vl.LoraConfig())
    paths = [path for path, _ in tuner_layers(vl.attach(base, vl.LoraConfig(), modules="all"))]
    assert any(".visual.layer1." in path for path in paths)
    assert any(".transformer." in path for path in paths)
