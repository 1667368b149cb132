"""LoRA of the fused ``qkv``: what vanilla PEFT loads on a timm model that nobody split."""

import copy

import peft
import pytest
import timm
import torch
from fixtures.models import moved
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.comp_lora import CompLoraConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.peft_method import peft_method
from vision_lowrank.adapters.tuner import tuner_layers
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attention.split import split_attention
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import UserError
from vision_lowrank.export.lora import export_lora


def vit():
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2, num_classes=3).eval()


def adapted(targets, config=LoraConfig, **options):
    torch.manual_seed(1)
    return moved(peft.get_peft_model(split_attention(vit()), config(target_modules=targets, **options)))


def pictures():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "targets", [["q_proj", "k_proj", "v_proj"], ["q_proj", "v_proj"], ["k_proj", "out_proj", "fc1"], ["fc2"]], ids=str
)
@pytest.mark.parametrize(
    ("config", "options"),
    [(LoraConfig, {"r": 3}), (BlockLoraConfig, {"r": 4, "blocks": 2}), (CompLoraConfig, {"r": 2})],
    ids=["lora", "block_lora", "comp_lora"],
)
def test_vanilla_peft_loads_it_on_the_unsplit_model(targets, config, options, tmp_path):
    model = adapted(targets, config, alpha=3, **options)
    report = export_lora(model, tmp_path / "lora", fuse_qkv=True)
    assert report.exact
    again = peft.PeftModel.from_pretrained(vit(), tmp_path / "lora").eval()
    assert {path.removeprefix("base_model.model.") for path, _ in tuner_layers(again)} == set(report.ranks)
    with torch.no_grad():
        torch.testing.assert_close(again(pictures()), model(pictures()), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(again(pictures()), vit()(pictures()), atol=1e-3)


def test_fused_update_is_the_three_stacked_and_rank_and_alpha_are_three_times_as_large(tmp_path):
    model = adapted(["q_proj", "k_proj", "v_proj"], r=2, alpha=5)
    report = export_lora(model, tmp_path / "lora", fuse_qkv=True)
    again = peft.PeftModel.from_pretrained(vit(), tmp_path / "lora")
    config = again.peft_config["default"]
    assert (config.r, config.lora_alpha) == (6, pytest.approx(3 * 2 * 5 / 2**0.5))
    assert report.ranks == {f"blocks.{i}.attn.qkv": 6 for i in (0, 1)}
    for block, other in zip(model.base_model.model.blocks, again.base_model.model.blocks, strict=True):
        parts = [getattr(block.attn, f"{letter}_proj").get_delta_weight("default") for letter in "qkv"]
        assert torch.equal(other.attn.qkv.get_delta_weight("default"), torch.cat(parts))


def test_parts_of_different_rank_and_scale_are_fused_exactly(tmp_path):
    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        rank_pattern={"k_proj": 4},
        alpha_pattern={"v_proj": 7},
        target_modules=["q_proj", "k_proj", "v_proj"],
    )
    model = moved(peft.get_peft_model(split_attention(vit()), config))
    assert export_lora(model, tmp_path / "lora", fuse_qkv=True).ranks["blocks.0.attn.qkv"] == 8
    again = peft.PeftModel.from_pretrained(vit(), tmp_path / "lora").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(pictures()), model(pictures()), rtol=1e-5, atol=1e-5)


def test_a_timm_backbone_of_ours_exports_for_timm_itself(tmp_path):
    torch.manual_seed(0)
    backbone = load_backbone("timm:test_vit", "random").eval()
    plain = timm.create_model("test_vit", num_classes=0).eval()
    plain.load_state_dict(copy.deepcopy(backbone.model.state_dict()))
    model = moved(attach(backbone, LoraConfig(r=2)))
    export_lora(model, tmp_path / "lora", fuse_qkv=True)
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "lora").eval()
    x = torch.randn(2, 3, model.preprocess.size, model.preprocess.size)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model.encode_image(x), rtol=1e-5, atol=1e-5)


def test_the_error_of_a_fused_layer_bounds_what_is_lost(tmp_path):
    model = adapted(["q_proj", "v_proj"], lambda **options: peft_method("LOHA", **options), r=3)
    report = export_lora(model, tmp_path / "lora", rank=2, fuse_qkv=True)
    again = peft.PeftModel.from_pretrained(vit(), tmp_path / "lora")
    for block, other in zip(model.base_model.model.blocks, again.base_model.model.blocks, strict=True):
        q, v = (getattr(block.attn, f"{letter}_proj").get_delta_weight("default") for letter in "qv")
        true = torch.cat([q, torch.zeros(24, 24), v])
        error = (other.attn.qkv.get_delta_weight("default") - true).norm() / true.norm()
        assert 1e-2 < error <= report.worst + 1e-6


def eva():
    torch.manual_seed(0)
    return Eva(img_size=32, patch_size=16, embed_dim=24, depth=1, num_heads=2, qkv_fused=True, num_classes=3)


def test_attention_without_one_called_linear_is_refused(tmp_path):
    model = attach(load_backbone("tiny-clip", "random"), LoraConfig(r=2))
    with pytest.raises(UserError, match="leave fuse_qkv out"):
        export_lora(model, tmp_path / "lora", fuse_qkv=True)
    model = peft.get_peft_model(split_attention(eva()), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UserError, match="SplitEvaAttention"):
        export_lora(model, tmp_path / "lora", fuse_qkv=True)
    assert not (tmp_path / "lora").exists()
