import pytest
import timm
import torch
import torch.nn.functional as F
from fixtures.models import moved
from open_clip.model import resize_pos_embed

import vision_lowrank as vl
from vision_lowrank.attention.split import split_attention
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import UserError

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 16}
TIMM = {
    "vit, and mae": ("vit_tiny_patch16_224", {}),
    "vit without class token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "deit": ("deit_tiny_patch16_224", {}),
    "deit distilled": ("deit_tiny_distilled_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "dinov2": ("vit_small_patch14_dinov2", {}),
    "dinov2 with registers": ("vit_small_patch14_reg4_dinov2", {}),
    "without positions": ("vit_tiny_patch16_224", {"pos_embed": "none"}),
}  # fmt: skip


def clip(**vision):
    return load_backbone("open_clip:ViT-B-32", "random", vision_cfg=VISION | vision, text_cfg=TEXT)


def timm_clip():
    trunk = {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False, "image_size": 224}
    return load_backbone("open_clip:ViT-B-32", "random", vision_cfg=trunk, text_cfg=TEXT)


MAKERS = {name: lambda arch=arch, more=more: load_backbone(f"timm:{arch}", "random", **SMALL | more)
          for name, (arch, more) in TIMM.items()} | {
    "tiny-clip": lambda: load_backbone("tiny-clip"),
    "open_clip": clip,
    "open_clip, mean of tokens": lambda: clip(pool_type="avg", final_ln_after_pool=True),
    "open_clip, pooled by attention": lambda: clip(attentional_pool=True, attn_pooler_heads=4),
    "open_clip with a timm trunk": timm_clip,
}  # fmt: skip


@pytest.fixture(params=MAKERS)
def backbone(request):
    torch.manual_seed(1)
    return MAKERS[request.param]().eval().double()


def pictures(height, width, count=2):
    return torch.randn(count, 3, height, width, dtype=torch.float64)


@torch.no_grad()
def test_at_the_native_size_the_map_is_the_tokens(backbone):
    size, trunk = backbone.preprocess.size, backbone.trunk
    pixels = pictures(size, size)
    tokens, (rows, columns) = backbone.image_tokens(pixels), backbone.token_grid
    found = backbone.image_map(pixels)
    assert found.shape == (2, trunk.layout.width, rows, columns)
    assert torch.equal(found.flatten(2).transpose(1, 2), tokens)
    backbone.float()
    torch.testing.assert_close(
        backbone.image_map(pixels.float()).flatten(2).transpose(1, 2),
        backbone.image_tokens(pixels.float()),
        rtol=1e-6,
        atol=1e-6,
    )


@torch.no_grad()
def test_what_the_first_block_receives_is_layer_0(backbone):
    size, trunk = backbone.preprocess.size, backbone.trunk
    pixels, seen = pictures(size, size), []
    handle = trunk.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    backbone.encode_image(pixels)
    handle.remove()
    assert torch.equal(trunk.embed(pixels), seen[0])
    assert seen[0].shape[1] == trunk.layout.prefix + trunk.layout.grid[0] * trunk.layout.grid[1]


@pytest.mark.parametrize(("height", "width"), [(48, 32), (16, 64), (24, 24)])
@pytest.mark.parametrize("name", [name for name in TIMM if name != "vit without class token"])
@torch.no_grad()
def test_on_another_grid_positions_are_those_of_timms_dynamic_size(name, height, width):
    arch, more = TIMM[name]
    backbone = load_backbone(f"timm:{arch}", "random", **SMALL | more).eval()
    dynamic = timm.create_model(arch, num_classes=0, dynamic_img_size=True, **SMALL | more).eval()
    dynamic.load_state_dict(backbone.model.state_dict())
    pixels = torch.randn(2, 3, height, width)
    expected = dynamic.forward_features(pixels)[:, dynamic.num_prefix_tokens :]
    found = backbone.image_map(pixels)
    assert found.shape[2:] == (height // 8, width // 8)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grid", [(6, 6), (6, 3), (2, 9)])
@torch.no_grad()
def test_on_another_grid_positions_are_those_that_open_clip_loads(grid):
    class Larger:
        class visual:
            grid_size = grid

    small = clip().eval()
    state = {"visual.positional_embedding": small.model.visual.positional_embedding}
    resize_pos_embed(state, Larger)
    expected = state["visual.positional_embedding"]
    torch.testing.assert_close(small.trunk.positions(grid)[0], expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_tiny_clip_on_a_larger_picture_is_tiny_clip_loaded_for_it():
    pixels = torch.randn(2, 3, 96, 96)
    expected = load_backbone("tiny-clip", image_size=96).eval().image_tokens(pixels)
    found = load_backbone("tiny-clip").eval().image_map(pixels)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_picture_that_patches_do_not_fill_is_padded_at_the_right_and_the_bottom(backbone):
    p = backbone.trunk.patch[0]
    pixels = pictures(3 * p - 1, 2 * p + 1)
    found = backbone.image_map(pixels)
    assert found.shape[2:] == (3, 3)
    assert torch.equal(found, backbone.image_map(F.pad(pixels, (0, p - 1, 0, 1))))


def test_gradients_reach_pictures_positions_and_blocks(backbone):
    p, trunk = backbone.trunk.patch[0], backbone.trunk
    pixels = pictures(3 * p, 2 * p).requires_grad_()
    backbone.image_map(pixels).square().mean().backward()
    assert pixels.grad.abs().sum() > 0
    reached = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert all(any(name.startswith(path) for name in reached) for path in backbone.towers["vision"].blocks)
    assert trunk.positions((3, 2)) is None or any("pos" in name for name in reached)


@pytest.mark.parametrize(
    "config",
    [
        vl.LoraConfig(r=2),
        vl.BlockLoraConfig(r=2, blocks=2),
        vl.VisualPromptConfig(length=3),
        vl.KvPrefixConfig(length=2),
    ],
    ids=["lora", "block_lora", "visual_prompt", "kv_prefix"],
)
def test_adapters_take_part(config):
    model = load_backbone("tiny-clip").double().eval()
    pixels = pictures(48, 48)
    before = model.image_map(pixels).detach()
    model = moved(vl.attach(model, config, towers=["vision"]))
    found = model.image_map(pixels)
    assert not torch.allclose(found, before)
    tokens = model.image_tokens(pixels)[:, :36]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens, rtol=1e-12, atol=1e-12)
    model.image_map(pictures(56, 40)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_split_attention_takes_no_part(backbone):
    pixels = pictures(backbone.preprocess.size, backbone.preprocess.size)
    before = backbone.image_map(pixels)
    split_attention(backbone)
    torch.testing.assert_close(backbone.image_map(pixels), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "name", ["timm:resnet10t", "timm:swin_tiny_patch4_window7_224", "timm:eva02_tiny_patch14_224", "open_clip:RN50"]
)
def test_a_backbone_that_is_no_plain_vit_says_so(name):
    backbone = load_backbone(name, "random")
    for ask in (lambda: backbone.trunk, lambda: backbone.image_map(torch.zeros(1, 3, 224, 224))):
        with pytest.raises(UserError, match=f"'{name}' is no plain vision transformer"):
            ask()
