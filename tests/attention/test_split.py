import copy

import open_clip
import pytest
import timm
import torch
from open_clip.transformer import Attention as OpenClipAttention
from peft import LoraConfig, get_peft_model
from timm.layers import AttentionRope
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import Attention as TimmAttention
from torch import nn

from vision_lowrank.attention.split import SplitAttention, can_split, fuse_attention, split_attention
from vision_lowrank.errors import UserError

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 50, "width": 48, "heads": 4, "layers": 2},
}


def small_vit(**options):
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 0} | options
    return timm.create_model("vit_tiny_patch16_224", **options)


def perturb(module, seed=0):
    """Make every parameter random: fresh norms and biases are ones and zeros, which hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def state_equal(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("arch", ["ViT-B-32", "ViT-B-16"])
def test_clip_keeps_its_embeddings_to_2e_6(arch):
    torch.manual_seed(0)
    model = open_clip.create_model(arch).eval()
    pixels, tokens = torch.randn(1, 3, 224, 224), open_clip.get_tokenizer(arch)(["a photo of a cat", "a dog"])
    # With gradients on: without, torch takes a fused kernel whose own rounding is as large as the bound.
    before = [model.encode_image(pixels), model.encode_text(tokens)]
    split_attention(model)
    assert sum(isinstance(m, SplitAttention) for m in model.modules()) == 24
    for y, expected in zip([model.encode_image(pixels), model.encode_text(tokens)], before, strict=True):
        torch.testing.assert_close(y, expected, atol=2e-6, rtol=0)


def test_clip_in_float64_is_exact_to_1e_12_in_both_modes_and_gradients():
    model = perturb(open_clip.CLIP(**TINY_CLIP).double())
    split = split_attention(copy.deepcopy(model))
    pixels, tokens = torch.randn(2, 3, 32, 32).double(), torch.randint(1, 50, (2, 12))
    for mode in (True, False):
        outputs = [[m.train(mode).encode_image(pixels), m.encode_text(tokens)] for m in (model, split)]
        for one, other in zip(*outputs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    sum((y**2).sum() for y in outputs[0]).backward()
    sum((y**2).sum() for y in outputs[1]).backward()
    whole = model.transformer.resblocks[1].attn
    parts = split.transformer.resblocks[1].attn
    joined = torch.cat([parts.q_proj.weight.grad, parts.k_proj.weight.grad, parts.v_proj.weight.grad])
    torch.testing.assert_close(whole.in_proj_weight.grad, joined, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(whole.out_proj.weight.grad, parts.out_proj.weight.grad, atol=1e-10, rtol=1e-10)


def test_the_text_tower_stays_causal():
    model = split_attention(open_clip.CLIP(**TINY_CLIP)).eval()
    hidden = model.transformer(torch.randn(1, 12, 48), attn_mask=model.attn_mask)
    x = torch.randn(1, 12, 48)
    changed = x.clone()
    changed[:, 7] += 1
    before, after = (model.transformer(y, attn_mask=model.attn_mask) for y in (x, changed))
    assert hidden.shape == x.shape
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qk_norm": True, "init_values": 1e-5, "reg_tokens": 4, "class_token": False, "global_pool": "avg"},
        {"scale_attn_norm": True, "qkv_bias": False},
        {"reg_tokens": 2, "init_values": 0.1, "proj_bias": False},
    ],
)
def test_timm_vit_in_float64_is_exact_to_1e_12(options):
    model = perturb(small_vit(**options).double()).eval()
    pixels = torch.randn(2, 3, 32, 32).double()
    before = model(pixels)
    split_attention(model)
    assert sum(isinstance(m, SplitAttention) for m in model.modules()) == 2
    torch.testing.assert_close(model(pixels), before, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "attention",
    [
        TimmAttention(24, 4, qkv_bias=True, attn_head_dim=8, gated=True),
        TimmAttention(24, 4, qkv_bias=True, qk_norm=True, scale_norm=True, norm_layer=nn.LayerNorm),
        OpenClipAttention(24, 4, qk_norm=True, norm_layer=nn.LayerNorm),
        OpenClipAttention(24, 4, scale_heads=True, inner_norm=True, qkv_bias=False, norm_layer=nn.LayerNorm),
    ],
    ids=["timm-gated-wide", "timm-norms", "open_clip-qk-norm", "open_clip-head-scale"],
)
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_self_attention_classes_agree_under_every_mask(attention, mask):
    attention = perturb(copy.deepcopy(attention).double())
    x = torch.randn(3, 7, 24).double()
    masks = {"none": None, "bool": torch.rand(7, 7) > 0.5, "float": torch.randn(7, 7).double()}
    if mask == "bool":
        # True hides a key in open_clip and shows it in timm: the diagonal must stay visible in each.
        masks["bool"].fill_diagonal_(isinstance(attention, TimmAttention))
    plain, before = attention(x), attention(x, attn_mask=masks[mask])
    assert torch.equal(plain, before) == (mask == "none")
    after = split_attention(attention)(x, attn_mask=masks[mask])
    torch.testing.assert_close(after, before, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "attention",
    [
        AttentionRope(24, 3, qk_norm=True, norm_layer=nn.LayerNorm),
        AttentionRope(24, 3, rotate_half=True, num_prefix_tokens=2),
        EvaAttention(24, 3, scale_norm=True, norm_layer=nn.LayerNorm),
        EvaAttention(24, 3, scale_norm=False, qkv_bias=False),
        EvaAttention(24, 3, scale_norm=False, qkv_bias_separate=True),
    ],
    ids=["rope-qk-norm", "rope-half-prefix-2", "eva-bias", "eva-no-bias", "eva-separate-bias"],
)
def test_rotary_attention_agrees_and_fuses_back(attention):
    attention = perturb(attention.double())
    state = {name: tensor.clone() for name, tensor in attention.state_dict().items()}
    x, rope = torch.randn(2, 9, 24).double(), torch.randn(9 - attention.num_prefix_tokens, 16).double()
    before, plain = attention(x, rope=rope), attention(x)
    split = split_attention(attention)
    torch.testing.assert_close(split(x, rope), before, atol=1e-12, rtol=0)
    torch.testing.assert_close(split(x), plain, atol=1e-12, rtol=0)
    assert not torch.allclose(before, plain)
    fused = fuse_attention(split)
    assert state_equal(fused.state_dict(), state)
    assert torch.equal(fused(x, rope=rope), before)


def attention_case(batch_first=True, batched=True, **options):
    torch.manual_seed(1)
    module = perturb(nn.MultiheadAttention(24, 4, batch_first=batch_first, **options).double())
    query = torch.randn(3, 5, 24).double()
    key = torch.randn(3, 6, options.get("kdim", 24)).double()
    value = torch.randn(3, 6, options.get("vdim", 24)).double()
    inputs = [query, key, value]
    if not batched:
        inputs = [x[0] for x in inputs]
    elif not batch_first:
        inputs = [x.transpose(0, 1) for x in inputs]
    return module, inputs


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 16, "vdim": 10}], ids=["plain", "no-bias", "kdim"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_agrees_in_outputs_weights_and_layout(options, batch_first, need_weights):
    module, inputs = attention_case(batch_first, **options)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2, [False] * 5 + [True]])
    masks = [
        {},
        {"key_padding_mask": padding},
        {"attn_mask": torch.randn(5, 6).double()},
        {"attn_mask": torch.rand(5, 6) > 0.8, "key_padding_mask": padding},
        {"attn_mask": torch.randn(12, 5, 6).double()},
        {"attn_mask": torch.ones(5, 6).triu(1).bool(), "is_causal": True},
    ]
    split = split_attention(copy.deepcopy(module))
    for mask in masks:
        mask["attn_mask"] = mask.get("attn_mask")
        for average in (True, False):
            expected = module(*inputs, need_weights=need_weights, average_attn_weights=average, **mask)
            got = split(*inputs, need_weights=need_weights, average_attn_weights=average, **mask)
            torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
            assert got[0].shape == expected[0].shape


def test_multihead_attention_agrees_without_a_batch_and_refuses_a_bare_causal_hint():
    module, inputs = attention_case(batched=False)
    split = split_attention(copy.deepcopy(module))
    padding = torch.tensor([False] * 5 + [True])
    torch.testing.assert_close(
        split(*inputs, key_padding_mask=padding), module(*inputs, key_padding_mask=padding), atol=1e-12, rtol=0
    )
    for attention in (module, split):
        with pytest.raises(RuntimeError):
            attention(*inputs, is_causal=True)


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_acts_on_the_attention_weights_in_training_only(need_weights):
    module, inputs = attention_case(dropout=0.5)
    split = split_attention(copy.deepcopy(module))
    torch.testing.assert_close(split.eval()(*inputs), module.eval()(*inputs), atol=1e-12, rtol=0)
    # Draws as one batch: dropout is unbiased and out_proj is linear, so their mean is the output without dropout.
    expected = split(*(x[:1] for x in inputs))[0]
    draws = split.train()(*(x[:1].expand(20_000, -1, -1) for x in inputs), need_weights=need_weights)[0]
    torch.testing.assert_close(draws.mean(0), expected[0], atol=0.03, rtol=0)
    assert (draws[0] - draws[1]).abs().max() > 0.03


def test_torch_encoder_runs_the_linears_even_where_its_fast_path_would_apply():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        before = encoder(x, src_key_padding_mask=padding)
        split_attention(split_attention(encoder))
        calls = []
        encoder.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: calls.append(1))
        after = encoder(x, src_key_padding_mask=padding)
        assert calls
        torch.testing.assert_close(after[~padding], before[~padding], atol=2e-6, rtol=0)
        encoder(x)
        encoder.layers[0](x)
        assert len(calls) == 3
        fuse_attention(encoder)
        assert encoder.use_nested_tensor
        assert torch.equal(encoder(x, src_key_padding_mask=padding), before)


def test_split_weights_are_the_row_slices_and_keep_flags_and_types():
    module = nn.MultiheadAttention(8, 2).bfloat16()
    module.in_proj_weight.requires_grad_(False)
    weight, bias, out = module.in_proj_weight, module.in_proj_bias, module.out_proj
    with torch.no_grad():
        split = split_attention(module)
    for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
        linear = getattr(split, name)
        assert torch.equal(linear.weight, weight[8 * index : 8 * index + 8])
        assert torch.equal(linear.bias, bias[8 * index : 8 * index + 8])
        assert (linear.weight.requires_grad, linear.bias.requires_grad) == (False, True)
        assert linear.weight.dtype == torch.bfloat16
    assert split.out_proj is out
    assert sum(p.numel() for p in split.parameters()) == 4 * 8 * 8 + 4 * 8


@pytest.mark.parametrize(
    "build",
    [
        lambda: open_clip.CLIP(**TINY_CLIP),
        lambda: small_vit(qk_norm=True, scale_attn_norm=True),
        lambda: nn.TransformerDecoderLayer(16, 2, 32),
        lambda: nn.MultiheadAttention(16, 2, kdim=8, vdim=4),
        lambda: OpenClipAttention(16, 2, scale_heads=True),
    ],
    ids=["clip", "vit", "decoder", "kdim", "open_clip-attention"],
)
def test_split_then_fuse_restores_class_names_order_and_bits(build):
    model = perturb(build())
    classes = {path: type(m) for path, m in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    split = split_attention(model.eval())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert split_attention(split) is split
    split = copy.deepcopy(split)
    fused = fuse_attention(split)
    assert {path: type(m) for path, m in fused.named_modules()} == classes
    assert state_equal(fused.state_dict(), state)
    assert not any(m.training for m in fused.modules())


def test_fused_weights_are_the_changed_ones():
    split = split_attention(small_vit()).double()
    perturb(split, seed=5)
    x = torch.randn(1, 3, 32, 32).double()
    expected = split.eval()(x)
    weight = split.blocks[0].attn.k_proj.weight.detach().clone()
    fused = fuse_attention(split)
    assert torch.equal(fused.blocks[0].attn.qkv.weight[48:96], weight)
    torch.testing.assert_close(fused(x), expected, atol=1e-12, rtol=0)


def test_a_module_used_twice_stays_one_module():
    shared = nn.MultiheadAttention(8, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared])})
    split_attention(model)
    assert isinstance(model["a"], SplitAttention)
    assert model["a"] is model["b"][0]
    fuse_attention(model)
    assert model["a"] is model["b"][0] is shared


def test_subclasses_and_unfused_attention_are_left_alone():
    class Own(nn.MultiheadAttention):
        pass

    own, rope = Own(8, 2), AttentionRope(8, 2, qkv_fused=False)
    model = nn.ModuleList([own, rope])
    split_attention(model)
    assert model[0] is own
    assert model[1] is rope
    assert not can_split(own)
    assert not can_split(rope)


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), "add_bias_kv"),
        (nn.MultiheadAttention(8, 2, add_zero_attn=True), "add_zero_attn"),
        (OpenClipAttention(8, 2, scaled_cosine=True), "scaled cosine"),
    ],
)
def test_what_cannot_be_split_exactly_is_refused_by_name_before_anything_changes(attention, reason):
    model = nn.ModuleDict({"first": nn.MultiheadAttention(8, 2), "second": attention})
    with pytest.raises(UserError, match=f"'second'.*{reason}"):
        split_attention(model)
    assert type(model["first"]) is nn.MultiheadAttention


@pytest.mark.parametrize(
    ("model", "target"), [(open_clip.CLIP(**TINY_CLIP), "out_proj"), (small_vit(), "qkv")], ids=["mha", "qkv"]
)
def test_attention_that_carries_an_adapter_is_refused(model, target):
    adapted = get_peft_model(model, LoraConfig(target_modules=[target]))
    with pytest.raises(UserError, match="carries an adapter already"):
        split_attention(adapted)


def test_lora_on_a_split_model_merges_to_the_closed_form_and_fuses():
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY_CLIP).double().eval()
    base = model.visual.transformer.resblocks[0].attn.in_proj_weight.detach().clone()
    adapted = get_peft_model(
        split_attention(model), LoraConfig(r=2, lora_alpha=6, target_modules=["k_proj"], init_lora_weights=False)
    )
    with pytest.raises(UserError, match="k_proj' still carries an adapter"):
        fuse_attention(adapted)
    layer = model.visual.transformer.resblocks[0].attn.k_proj
    delta = 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    pixels = torch.randn(1, 3, 32, 32).double()
    expected = model.encode_image(pixels)
    fused = fuse_attention(adapted.merge_and_unload())
    attention = fused.visual.transformer.resblocks[0].attn
    assert type(attention) is nn.MultiheadAttention
    base[64:128] += delta
    torch.testing.assert_close(attention.in_proj_weight.detach(), base.detach(), atol=1e-14, rtol=0)
    torch.testing.assert_close(fused.encode_image(pixels), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "build", [lambda: small_vit(depth=1), lambda: nn.MultiheadAttention(16, 2, batch_first=True)], ids=["vit", "mha"]
)
def test_full_graph_compile_gives_the_same_output(build):
    module = split_attention(build()).eval()
    x = [torch.randn(1, 3, 32, 32)] if hasattr(module, "blocks") else [torch.randn(2, 5, 16)] * 3
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*x), module(*x), atol=1e-5, rtol=0)
