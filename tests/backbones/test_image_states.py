import pytest
import torch
import torch.nn.functional as F

from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.visual_prompt import VisualPromptConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attention.split import split_attention
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import UserError

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16}
TRUNK = {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_model_pretrained": False}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
MAKERS = {
    "tiny-clip": lambda: load_backbone("tiny-clip", image_size=32),
    "open_clip": lambda: load_backbone("open_clip:ViT-B-32", "random", vision_cfg=VISION, text_cfg=TEXT),
    "open_clip with a timm trunk": lambda: load_backbone(
        "open_clip:ViT-B-32", "random", vision_cfg=TRUNK, text_cfg=TEXT
    ),
    "timm": lambda: load_backbone("timm:vit_tiny_patch16_224", "random", image_size=32, **SMALL),
    "timm with registers": lambda: load_backbone(
        "timm:vit_tiny_patch16_224", "random", image_size=32, reg_tokens=4, **SMALL
    ),
    "timm eva": lambda: load_backbone("timm:eva02_tiny_patch14_224", "random", image_size=28, depth=3),
}


@pytest.fixture(params=MAKERS)
def backbone(request):
    return MAKERS[request.param]().eval()


def tiles_for(backbone, count):
    size = backbone.preprocess.size
    return torch.randn(count, 3, size, size)


def blocks_of(backbone):
    return [backbone.get_submodule(path) for path in backbone.towers["vision"].blocks]


def outputs_of(backbone, tiles):
    """What every block gives in a full pass, class and register tokens included."""
    seen = []
    handles = [block.register_forward_hook(lambda m, a, y: seen.append(y)) for block in blocks_of(backbone)]
    backbone.encode_image(tiles)
    [handle.remove() for handle in handles]
    return seen


@torch.no_grad()
def test_states_are_the_patches_of_every_block_before_the_final_norm(backbone):
    tiles, (rows, columns) = tiles_for(backbone, 3), backbone.token_grid
    full = outputs_of(backbone, tiles)
    layers = list(range(backbone.state_layers + 1))
    states, valid = backbone.image_states(tiles, [1, 1, 1], layers)
    assert len(full) == backbone.state_layers == len(states) - 1
    assert valid.shape == (3, rows * columns)
    assert valid.all()
    for state, output in zip(states[1:], full, strict=True):
        assert state.shape == (3, rows * columns, backbone.state_width)
        assert torch.equal(state, output[:, output.shape[1] - rows * columns :])
    backwards, _ = backbone.image_states(tiles, [1, 1, 1], layers[::-1])
    assert all(torch.equal(one, other) for one, other in zip(backwards, states[::-1], strict=True))


@torch.no_grad()
def test_blocks_above_the_highest_layer_do_not_run(backbone):
    tiles = tiles_for(backbone, 1)
    for highest in (0, 1, backbone.state_layers - 1):
        expected = backbone.image_states(tiles, [1], [highest, backbone.state_layers])[0][0]
        block = blocks_of(backbone)[highest]
        block.forward, forward = None, block.forward  # a call would raise
        assert torch.equal(backbone.image_states(tiles, [1], [highest])[0][0], expected)
        with pytest.raises(TypeError):
            backbone.image_states(tiles, [1], [highest + 1])
        block.forward = forward
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks_of(backbone))


@torch.no_grad()
def test_tiles_of_one_picture_follow_one_another_and_short_pictures_are_padded(backbone):
    tiles, n = tiles_for(backbone, 4), backbone.token_grid[0] * backbone.token_grid[1]
    (apart,), _ = backbone.image_states(tiles, [1] * 4, [1])
    (joined,), valid = backbone.image_states(tiles, [1, 3], [1])
    assert valid.sum(1).tolist() == [n, 3 * n]
    torch.testing.assert_close(joined[0, :n], apart[0])
    torch.testing.assert_close(joined[1], apart[1:].flatten(0, 1))
    assert not joined[~valid].any()


def test_a_patch_moves_the_token_at_its_place():
    backbone = load_backbone("tiny-clip", image_size=32)
    tiles = torch.randn(2, 3, 32, 32)
    tiles[1] = tiles[0]
    tiles[1, :, 16:24, 8:16] += 1
    (state,), _ = backbone.image_states(tiles, [1, 1], [0])
    assert (state[0] - state[1]).norm(dim=-1).nonzero().flatten().tolist() == [2 * 4 + 1]


def test_split_attention_and_adapters_keep_and_then_move_the_states():
    backbone = load_backbone("tiny-clip").eval()
    tiles = tiles_for(backbone, 2)
    (before,), _ = backbone.image_states(tiles, [2], [3])
    split_attention(backbone)
    torch.testing.assert_close(backbone.image_states(tiles, [2], [3])[0][0], before, rtol=1e-5, atol=1e-5)
    model = attach(backbone, LoraConfig(r=2), towers=["vision"]).eval()
    (state,), _ = model.image_states(tiles, [2], [3])
    torch.testing.assert_close(state, before, rtol=1e-5, atol=1e-5)
    state.square().sum().backward()
    reached = {name.split("resblocks.")[1][0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"0", "1", "2"}
    assert model.state_layers == 6


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_are_no_image_tokens(deep):
    model = attach(load_backbone("tiny-clip"), VisualPromptConfig(length=3, deep=deep), towers=["vision"]).eval()
    tiles, normed = tiles_for(model, 1), []
    handle = model.get_base_model().model.visual.ln_post.register_forward_pre_hook(lambda m, args: normed.append(*args))
    model.encode_image(tiles)
    handle.remove()
    states, _ = model.image_states(tiles, [1], [0, 2, 6])
    assert {tuple(state.shape) for state in states} == {(1, 36, 192)}
    assert torch.equal(states[2], normed[0][:, 1:37])


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:swin_tiny_patch4_window7_224", "open_clip:RN50"])
def test_a_backbone_without_equal_blocks_says_so(name):
    backbone = load_backbone(name, "random")
    for ask in (lambda: backbone.state_width, lambda: backbone.image_states(torch.zeros(1, 3, 224, 224), [1], [1])):
        with pytest.raises(UserError, match=f"'{name}' has no vision tower whose blocks"):
            ask()


def test_arguments_are_checked():
    backbone = load_backbone("tiny-clip")
    tiles = tiles_for(backbone, 2)
    for counts, layers, message in (
        ([1, 2], [1], "2 tiles do not make pictures"),
        ([2, 0], [1], "each needs at least one"),
        ([2], [7], "layer 7 does not exist"),
        ([2], [-1], "layer -1 does not exist"),
        ([2], [], "layers is empty"),
    ):
        with pytest.raises(UserError, match=message):
            backbone.image_states(tiles, counts, layers)
    with pytest.raises(UserError, match=r"reads \(3, 48, 48\)"):
        backbone.image_states(torch.zeros(2, 3, 32, 32), [2], [1])


def test_another_image_size_resamples_the_positions_of_the_patches():
    plain, large = load_backbone("tiny-clip"), load_backbone("tiny-clip", image_size=160)
    own, other = (b.model.visual.positional_embedding for b in (plain, large))
    grid = own[1:].T.reshape(1, 192, 6, 6)
    expected = F.interpolate(grid, (20, 20), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(other[1:], expected[0].flatten(1).T)
    assert torch.equal(other[0], own[0])
    assert large.preprocess.size == 160
    assert large.transform is not None
    assert large.encode_image(torch.randn(1, 3, 160, 160)).shape == (1, 192)
    assert large.spec == {"name": "tiny-clip", "weights": None, "image_size": 160}
    assert load_backbone(**large.spec).fingerprint == large.fingerprint != plain.fingerprint
    assert load_backbone("tiny-clip", image_size=48).fingerprint == plain.fingerprint == "a09ee83d712c01e3"


@pytest.mark.parametrize(
    ("name", "size", "near"),
    [("tiny-clip", 50, 48), ("timm:vit_tiny_patch16_224", 4, 16), ("open_clip:ViT-B-32", 100, 96)],
)
def test_an_image_size_that_patches_do_not_fill_is_refused(name, size, near):
    with pytest.raises(UserError, match=f"image_size = {size}: .* such as {near}"):
        load_backbone(name, "random", image_size=size)


def test_every_family_takes_an_image_size():
    for backbone in (
        load_backbone("timm:vit_tiny_patch16_224", "random", image_size=64, **SMALL),
        load_backbone("open_clip:ViT-S-16", "random", image_size=128),
    ):
        assert backbone.token_grid == (8, 8)
        assert backbone.preprocess.size == backbone.options["image_size"]
        assert load_backbone(**backbone.spec).preprocess == backbone.preprocess
