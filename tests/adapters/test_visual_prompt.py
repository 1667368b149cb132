import copy
import math

import open_clip
import peft
import pytest
import torch
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from transformers import ViTConfig, ViTModel

import vision_lowrank as vl
from vision_lowrank.adapters.tuner import adapter_layers
from vision_lowrank.adapters.visual_prompt import VisualPromptConfig
from vision_lowrank.attention.split import split_attention
from vision_lowrank.errors import UserError
from vision_lowrank.export.lora import export_lora
from vision_lowrank.targets.select import select

D, HEADS, DEPTH, PATCHES = 12, 2, 3, 4
TIMM = {"img_size": 32, "patch_size": 16, "embed_dim": D, "depth": DEPTH, "num_heads": HEADS, "num_classes": 0}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")


def timm_vit(**options):
    return split_attention(VisionTransformer(**TIMM | options))


def clip(**options):
    vision = {"image_size": 32, "layers": DEPTH, "width": D, "patch_size": 16, "head_width": D // HEADS} | options
    text = {"context_length": 8, "vocab_size": 64, "width": D, "heads": HEADS, "layers": 2}
    return split_attention(open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text))


def hf_vit(attention="sdpa"):
    sizes = {"hidden_size": D, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 20}
    config = ViTConfig(image_size=32, patch_size=16, attn_implementation=attention, **sizes)
    return ViTModel(config, add_pooling_layer=False)


HOSTS = {
    "timm": (timm_vit, r"blocks\.\d+"),
    "timm average": (lambda: timm_vit(class_token=False, global_pool="avg", init_values=0.1), r"blocks\.\d+"),
    "open_clip": (lambda: clip().visual, r"transformer\.resblocks\.\d+"),
    "open_clip custom": (lambda: clip(block_type="custom", qk_norm=True).visual, r"transformer\.resblocks\.\d+"),
    "hf": (hf_vit, r"layers\.\d+"),
    "hf eager": (lambda: hf_vit("eager"), r"layers\.\d+"),
}
hosts = pytest.mark.parametrize("host", HOSTS)
both_kinds = pytest.mark.parametrize("deep", [True, False])


def attached(host="timm", targets=None, **options):
    """The base, and a copy with large random prompts, both in float64."""
    torch.manual_seed(0)
    base = HOSTS[host][0]().double().eval()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    config = VisualPromptConfig(**{"length": 5, "target_modules": targets or HOSTS[host][1]} | options)
    model = peft.get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False).eval()
    for P in trained(model):
        P.data.normal_()
    return base, model


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def pixels():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run(model):
    output = model(pixels())
    return getattr(output, "last_hidden_state", output)


def attention_by_hand(attn, x):
    """timm's fused attention, head by head."""
    outputs = []
    for q, k, v in zip(*(part.split(D // HEADS, dim=-1) for part in attn.qkv(x).chunk(3, dim=-1)), strict=True):
        outputs.append(torch.softmax(q @ k.mT / math.sqrt(D // HEADS), dim=-1) @ v)
    return attn.proj(torch.cat(outputs, dim=-1))


def vit_by_hand(vit, prompts, deep):
    """The paper's order: class token, prompts, patches."""
    x = vit.patch_embed(pixels())
    x = torch.cat([vit.cls_token.expand(2, -1, -1), x], dim=1) + vit.pos_embed
    p = len(prompts[0])
    for number, block in enumerate(vit.blocks):
        if deep or number == 0:
            x = torch.cat([x[:, :1], prompts[number].expand(2, -1, -1), x[:, 1:]], dim=1)
        x = x + attention_by_hand(block.attn, block.norm1(x))
        x = x + block.mlp(block.norm2(x))
        if deep or number == DEPTH - 1:
            x = torch.cat([x[:, :1], x[:, 1 + p :]], dim=1)
    assert x.shape[1] == 1 + PATCHES
    return vit.norm(x)[:, 0]


@both_kinds
def test_equals_a_transformer_written_by_hand_with_the_prompts_where_the_paper_has_them(deep):
    base, model = attached(deep=deep)
    expected = vit_by_hand(vl.fuse_attention(copy.deepcopy(base)), trained(model), deep)
    torch.testing.assert_close(run(model), expected, rtol=1e-11, atol=1e-11)
    assert (expected - run(base)).abs().max() > 1e-2


@both_kinds
@hosts
def test_every_kind_of_block_agrees_with_hooks_that_put_prompts_in_front(host, deep):
    base, model = attached(host, deep=deep)
    paths = [name.removeprefix("base_model.model.") for name, _ in adapter_layers(model)]
    prompts, last = trained(model), len(paths) - 1
    for number, path in enumerate(paths):
        block = base.get_submodule(path)
        if deep or number == 0:
            P = prompts[number]
            block.register_forward_pre_hook(
                lambda module, args, P=P: (torch.cat([P.expand(2, -1, -1), args[0]], dim=1), *args[1:])
            )
        if deep or number == last:
            block.register_forward_hook(lambda module, args, output: output[:, 5:])
    assert len(paths) == DEPTH
    tolerance = 1e-6 if host == "hf eager" else 1e-11  # its softmax is computed in float32
    torch.testing.assert_close(run(model), run(base), rtol=tolerance, atol=tolerance)


@both_kinds
@hosts
def test_no_prompts_are_the_frozen_model(host, deep):
    base, model = attached(host, length=0, deep=deep)
    assert sum(P.numel() for P in trained(model)) == 0
    assert torch.equal(run(model), run(base))


def test_parameter_counts():
    """VPT-deep on ViT-B/16: 12 blocks, 10 prompts of 768."""
    for deep, expected in ((True, 12 * 10 * 768), (False, 10 * 768)):
        with torch.device("meta"):
            base = VisionTransformer(num_classes=0)
        model = peft.get_peft_model(base, VisualPromptConfig(target_modules=r"blocks\.\d+", deep=deep))
        assert sum(P.numel() for P in trained(model)) == expected


@pytest.mark.parametrize(("deep", "between"), [(True, 1 + PATCHES), (False, 1 + PATCHES + 5)])
def test_prompts_are_inside_the_blocks_and_gone_after_the_last(deep, between):
    _, model = attached(deep=deep)
    inside, after = [], []
    for _, layer in adapter_layers(model):
        layer.base_layer.register_forward_hook(lambda module, args, output: inside.append(output.shape[1]))
        layer.register_forward_hook(lambda module, args, output: after.append(output.shape[1]))
    run(model)
    assert inside == [1 + PATCHES + 5] * DEPTH
    assert after == [between, between, 1 + PATCHES]


def test_only_prompts_receive_a_gradient():
    _, model = attached()
    (run(model) * torch.randn(2, D, dtype=torch.float64)).sum().backward()
    assert [tuple(P.shape) for P in trained(model)] == [(5, D)] * DEPTH
    assert all(P.grad.abs().max() > 1e-6 for P in trained(model))
    assert all(P.grad is None for P in model.parameters() if not P.requires_grad)


def test_shallow_prompts_start_and_end_with_the_chosen_blocks():
    base, model = attached(targets=["blocks.1", "blocks.2"], deep=False)
    (P,) = trained(model)
    x = base.blocks[0](base._pos_embed(base.patch_embed(pixels())))
    for block in base.blocks[1:]:
        x = block(torch.cat([x, P.expand(2, -1, -1)], dim=1) if block is base.blocks[1] else x)
    torch.testing.assert_close(run(model), base.norm(x[:, :5])[:, 0], rtol=1e-11, atol=1e-11)


def test_permuted_prompts_change_nothing_and_samples_stay_apart():
    _, model = attached()
    before = run(model)
    torch.testing.assert_close(model(pixels()[:1]), before[:1], rtol=1e-11, atol=1e-11)
    for P in trained(model):
        P.data = P.data.flip(0)
    torch.testing.assert_close(run(model), before, rtol=1e-11, atol=1e-11)


def test_start_is_uniform_within_the_bound_of_the_paper():
    model = peft.get_peft_model(timm_vit(), VisualPromptConfig(length=500, target_modules=["blocks.0"]))
    (P,) = trained(model)
    bound = math.sqrt(6 / (3 * 16 * 16 + D))
    assert 0.99 * bound < P.abs().max() <= bound
    assert P.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    layer = adapter_layers(model)[0][1].weight_update["default"]
    assert layer.facts()["prompt_norm"] == pytest.approx(P.norm(dim=1).mean().item())


def test_dropout_acts_on_prompts_in_training_only():
    _, model = attached(dropout=0.5)
    assert torch.equal(run(model), run(model))
    model.train()
    assert (run(model) - run(model)).abs().max() > 1e-3


def test_two_adapters_of_different_kinds_switch_but_do_not_work_at_once():
    base, model = attached()
    first = run(model)
    model.add_adapter("second", VisualPromptConfig(length=2, deep=False, target_modules=r"blocks\.\d+"))
    model.set_adapter("second")
    assert len(trained(model)) == 1
    (P,) = trained(model)
    expected = vit_by_hand(vl.fuse_attention(copy.deepcopy(base)), [P.double()], deep=False)
    torch.testing.assert_close(run(model), expected, rtol=1e-6, atol=1e-6)
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UserError, match="activate one"):
        run(model)
    model.set_adapter("default")
    assert torch.equal(run(model), first)
    assert torch.equal(run(model.unload()), run(base))


def test_attaches_to_the_vision_tower_by_its_place_saves_and_loads(tmp_path):
    model = vl.attach(vl.load_backbone("tiny-clip"), VisualPromptConfig(length=4), towers=["vision"], layers="-2:")
    names = [name.removeprefix("base_model.model.") for name, _ in adapter_layers(model)]
    assert names == [model.towers["vision"].blocks[-2], model.towers["vision"].blocks[-1]]
    for P in trained(model):
        P.data.normal_()
    vl.save(model, tmp_path / "adapter")
    again = vl.load(tmp_path / "adapter", vl.load_backbone("tiny-clip"))
    size = again.preprocess.size
    x = torch.randn(2, 3, size, size)
    assert torch.equal(again.encode_image(x), model.eval().encode_image(x))
    assert again.image_tokens(x).shape == vl.load_backbone("tiny-clip").image_tokens(x).shape
    vl.attach(model, VisualPromptConfig(length=0), towers=["vision"], adapter_name="none")
    assert torch.equal(model.encode_image(x), vl.split_attention(vl.load_backbone("tiny-clip")).encode_image(x))


def test_text_towers_are_refused_and_left_as_they_were():
    backbone = vl.load_backbone("tiny-clip")
    names = [name for name, _ in vl.split_attention(backbone).named_modules()]
    with pytest.raises(UserError, match=r"model\.transformer\.resblocks\.0': the block is given a mask"):
        vl.attach(backbone, VisualPromptConfig())
    assert [name for name, _ in backbone.named_modules()] == names


@pytest.mark.parametrize("arguments", [{"attn_mask": torch.zeros(5, 5).double()}, {"is_causal": True}])
def test_masks_are_refused_when_they_come(arguments):
    _, model = attached()
    with pytest.raises(UserError, match="is given a mask"):
        model.base_model.model.blocks[0](torch.randn(1, 5, D, dtype=torch.float64), **arguments)


OTHERS = {
    "swin": (
        lambda: SwinTransformer(img_size=16, embed_dim=12, depths=(1,), num_heads=(2,), window_size=2),
        "layers.0.blocks.0",
    ),
    "eva": (lambda: Eva(img_size=32, embed_dim=24, depth=1, num_heads=2, use_rot_pos_emb=True), "blocks.0"),
    "parallel": (lambda: VisionTransformer(**TIMM, block_fn=ParallelScalingBlock), "blocks.0"),
    "linear": (timm_vit, "blocks.0.mlp.fc1"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_modules_are_refused_and_the_model_is_left_as_it_was(kind):
    build, target = OTHERS[kind]
    model = build()
    with pytest.raises(UserError, match="needs the blocks of a plain vision transformer"):
        peft.get_peft_model(model, VisualPromptConfig(target_modules=[target]))
    assert not adapter_layers(model)


def test_blocks_with_tokens_before_samples_are_refused():
    block = open_clip.transformer.ResidualAttentionBlock(D, HEADS, batch_first=False)
    with pytest.raises(UserError, match="use batch_first"):
        peft.get_peft_model(torch.nn.ModuleDict({"a": split_attention(block)}), VisualPromptConfig(target_modules="a"))


def test_shallow_prompts_refuse_a_gap():
    with pytest.raises(UserError, match=r"'blocks.0' is not followed by 'blocks.2'"):
        attached(targets=["blocks.0", "blocks.2"], deep=False)
    attached(targets=["blocks.0", "blocks.2"])


@pytest.mark.parametrize("options", [{"length": -1}, {"dropout": 1.0}])
def test_wrong_options_are_refused(options):
    with pytest.raises(UserError, match="length = "):
        VisualPromptConfig(**options)


REFUSED = {
    "merge_and_unload": lambda model, folder: model.merge_and_unload(),
    "merge_adapter": lambda model, folder: model.merge_adapter(),
    "vl.merge": lambda model, folder: vl.merge(model),
    "delta": lambda model, folder: adapter_layers(model)[0][1].get_delta_weight("default"),
    "export": lambda model, folder: export_lora(model, folder / "lora"),
}


@pytest.mark.parametrize("way", REFUSED)
def test_merging_and_export_are_refused(way, tmp_path):
    with pytest.raises(UserError, match=r"works with prompts.*keep the adapter"):
        REFUSED[way](attached()[1], tmp_path)


def test_an_initializer_is_refused():
    with pytest.raises(UserError, match="visual_prompt defines its own start"):
        vl.attach(vl.load_backbone("tiny-clip"), VisualPromptConfig(), towers=["vision"], initializer=vl.Pissa())


def test_a_block_is_a_place_only_for_methods_that_take_it_whole():
    backbone = vl.load_backbone("tiny-clip")
    assert select(backbone, ["vision"], [1], ["block"], ["block"]) == [backbone.towers["vision"].blocks[1]]
    with pytest.raises(UserError, match="no module 'block'"):
        vl.attach(backbone, vl.BlockLoraConfig(), modules=["block"])


def test_the_model_may_look_into_its_blocks():
    layer = adapter_layers(attached()[1])[0][1]
    assert layer.attn is layer.base_layer.attn
    with pytest.raises(AttributeError, match="no attribute 'attention'"):
        _ = layer.attention


def test_compiles_as_one_graph():
    layer = adapter_layers(attached()[1])[0][1]
    x = torch.randn(2, 5, D, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-12, atol=1e-12)
