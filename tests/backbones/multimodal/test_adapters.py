import peft
import pytest
import torch
from fixtures.multimodal import arch_of, fresh, shared, tiles_for

from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.sora import SoraConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attachment.merge import merge
from vision_lowrank.attention.split import fuse_attention, split_attention
from vision_lowrank.backbones.multimodal.sizes import TINY
from vision_lowrank.errors import UserError

# Parameters of LoRA r = 4 on the linears of the tower as published.
COUNTS = {
    "tiny-qwen2-vl": 3072,
    "tiny-qwen2.5-vl": 3840,
    "tiny-qwen3-vl": 4608,
    "tiny-internvl3": 3584,
    "tiny-internvl3_5": 3584,
    "tiny-llava-onevision": 3584,
    "tiny-smolvlm": 3584,
}


@pytest.fixture(params=TINY)
def backbone(request):
    return shared(request.param)


# 5 ---------------------------------------------------------------------------------------------------------------


def test_the_familys_regex_hits_every_linear_of_the_tower_and_none_of_the_llm(backbone):
    own = fresh(arch_of(backbone))
    config = peft.LoraConfig(r=4, target_modules=own.family.vision_regex)
    model = peft.get_peft_model(own.model, config)
    adapted = {name.split(".lora_A")[0] for name, p in model.named_parameters() if "lora_A" in name}
    blocks = len(own.towers["vision"].blocks)
    assert len(adapted) == blocks * len(set(own.family.linears.values()))
    assert not any(own.family.llm in name for name in adapted)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == COUNTS[arch_of(own)]


# 8 ---------------------------------------------------------------------------------------------------------------


# LoRA in every family, two more methods where attention is separate and where it is fused.
CASES = [
    *((arch, LoraConfig(r=2)) for arch in TINY),
    *((arch, BlockLoraConfig(r=2, blocks=2)) for arch in ("tiny-internvl3_5", "tiny-qwen2.5-vl")),
    *((arch, SoraConfig(r=2)) for arch in ("tiny-smolvlm", "tiny-qwen3-vl")),
]


@pytest.mark.parametrize(("arch", "config"), CASES, ids=lambda value: getattr(type(value), "__name__", value))
@pytest.mark.parametrize("tower", ["vision", "llm"])
def test_methods_attach_to_either_tower_and_merge(arch, tower, config):
    own = fresh(arch)
    tiles = tiles_for(own, 2)
    with torch.no_grad():
        before = own.image_states(tiles, [2], [3])[0][0]
    model = attach(own, config, towers=[tower], modules=["q", "v", "o", "fc1", "fc2"]).eval()
    assert {own.tower_of(n) for n, p in own.named_parameters() if p.requires_grad} == {tower}
    torch.testing.assert_close(model.image_states(tiles, [2], [3])[0][0], before, rtol=1e-4, atol=1e-5)
    model.image_states(tiles, [2], [4])[0][0].square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        adapted = model.image_states(tiles, [2], [3])[0][0]
        assert (adapted - before).abs().max() > 1e-3
        merged = merge(model)
        torch.testing.assert_close(merged.image_states(tiles, [2], [3])[0][0], adapted, rtol=1e-4, atol=1e-4)


def test_gradient_of_states_reaches_the_tower_through_the_frozen_llm(backbone):
    own = fresh(arch_of(backbone))
    model = attach(own, LoraConfig(r=2), towers=["vision"], modules=["q", "o", "fc2"])
    model.image_states(tiles_for(own, 2), [1, 1], [3])[0][0].square().mean().backward()
    ups = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert ups
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ups)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("arch", ["tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl"])
@torch.no_grad()
def test_fused_qkv_is_split_and_put_back(arch):
    own = fresh(arch)
    tiles, fingerprint = tiles_for(own, 2), {n: p.clone() for n, p in own.model.state_dict().items()}
    before = own.image_tokens(tiles)
    split_attention(own)
    block = own.get_submodule(own.towers["vision"].blocks[0])
    assert block.attn.qkv.k_proj.weight.shape == (32, 32)
    torch.testing.assert_close(own.image_tokens(tiles), before, rtol=1e-6, atol=1e-6)
    fuse_attention(own)
    after = own.model.state_dict()
    assert after.keys() == fingerprint.keys()
    assert all(torch.equal(after[name], fingerprint[name]) for name in after)
    model = attach(own, LoraConfig(r=2), towers=["vision"], modules=["q"])
    with pytest.raises(UserError, match=r"qkv\.q_proj' still carries an adapter"):
        fuse_attention(model)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        own = fresh("tiny-qwen3-vl", gradient_checkpointing=checkpointing)
        model = attach(own, LoraConfig(r=2), towers=["vision"]).train()
        torch.manual_seed(1)
        model.image_states(tiles_for(own, 2), [1, 1], [2, 3])[0][1].square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
