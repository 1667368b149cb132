import copy
import math

import open_clip
import peft
import pytest
import torch
from open_clip.transformer import Attention as OpenClipAttention
from timm.layers import AttentionRope
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import Attention as TimmAttention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vision_lowrank as vl
from vision_lowrank.adapters.kv_prefix import KvPrefixConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.tuner import adapter_layers
from vision_lowrank.attention.split import fuse_attention, split_attention
from vision_lowrank.errors import UserError
from vision_lowrank.export.lora import export_lora

D, H, L, P = 12, 3, 7, 4
TIMM = {"img_size": 32, "patch_size": 16, "embed_dim": D, "depth": 2, "num_heads": H, "num_classes": 0}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")

ATTENTIONS = {
    "mha": lambda: nn.MultiheadAttention(D, H, batch_first=True),
    "open_clip": lambda: OpenClipAttention(D, H, qk_norm=True, scale_heads=True, norm_layer=nn.LayerNorm),
    "timm": lambda: TimmAttention(D, H, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm),
    "timm wide": lambda: TimmAttention(D, H, attn_head_dim=6, gated=True),
    "rope": lambda: AttentionRope(D, H, num_prefix_tokens=1),
    "eva": lambda: EvaAttention(D, H, scale_norm=False),
}
every_attention = pytest.mark.parametrize("kind", ATTENTIONS)
both_forms = pytest.mark.parametrize("gated", [False, True])


class Holder(nn.Module):
    def __init__(self, attn):
        super().__init__()
        self.attn = attn

    def forward(self, *args, **kwargs):
        return self.attn(*args, **kwargs)


def attached(base, gated=False, **options):
    """`base` in float64 with a random prefix, and its layers."""
    config = KvPrefixConfig(**{"length": P, "zero_init_gate": gated, "target_modules": ["core"]} | options)
    model = peft.get_peft_model(base.double(), config, autocast_adapter_dtype=False).eval()
    for parameter in trained(model):
        parameter.data.normal_()
    return model, [layer for _, layer in adapter_layers(model)]


def one(kind, gated=False, **options):
    torch.manual_seed(0)
    model, (layer,) = attached(Holder(split_attention(ATTENTIONS[kind]())), gated, **options)
    return model, layer, layer.weight_update["default"]


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def call(kind, model, x, **options):
    """Self-attention, whatever the class calls its arguments."""
    if kind == "mha":
        return model(x, x, x, need_weights=False, **options)[0]
    if kind in ("rope", "eva"):
        options["rope"] = double(x.shape[1] - 1, 2 * x.shape[2] // H)
    return model(x, **options)


def by_hand(q, k, v, update, scale=None, hidden=None):
    """y (B, H, L, e) from heads (B, H, ., .), row by row; `hidden` (L, S) is True where a key is hidden."""
    y = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    scale = scale or 1 / math.sqrt(q.shape[3])
    for b, h, i in torch.cartesian_prod(*(torch.arange(size) for size in q.shape[:3])).tolist():
        seen = [j for j in range(k.shape[2]) if hidden is None or not hidden[i, j]]
        width_k, width_v = k.shape[3], v.shape[3]
        Pk = update.Pk[:, h * width_k : (h + 1) * width_k]
        Pv = update.Pv[:, h * width_v : (h + 1) * width_v]
        own, prefix = scale * k[b, h, seen] @ q[b, h, i], scale * Pk @ q[b, h, i]
        if update.g is None:
            weights = torch.exp(torch.cat([own, prefix]))
            y[b, h, i] = weights @ torch.cat([v[b, h, seen], Pv]) / weights.sum()
        else:
            y[b, h, i] = own.softmax(0) @ v[b, h, seen] + torch.tanh(update.g[h]) * (prefix.softmax(0) @ Pv)
    return y


@both_forms
@pytest.mark.parametrize("causal", [False, True])
def test_core_equals_attention_written_by_hand(gated, causal):
    _, layer, update = one("timm wide", gated)
    q, k, v = double(2, H, L, 6), double(2, H, L, 6), double(2, H, L, 6)
    hidden = torch.ones(L, L).triu(1).bool() if causal else None
    y, weights = layer(q, k, v, is_causal=causal, scale=0.3)
    assert weights is None
    torch.testing.assert_close(y, by_hand(q, k, v, update, 0.3, hidden), rtol=1e-11, atol=1e-11)


@both_forms
def test_whole_attention_equals_the_formula_with_its_weights(gated):
    """nn.MultiheadAttention from its original matrices."""
    torch.manual_seed(0)
    original = nn.MultiheadAttention(D, H, batch_first=True).double()
    nn.init.normal_(original.in_proj_bias)
    model, (layer,) = attached(Holder(split_attention(copy.deepcopy(original))), gated)
    x = double(2, L, D)
    projected = x @ original.in_proj_weight.T + original.in_proj_bias
    q, k, v = (part.unflatten(-1, (H, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1))
    y = by_hand(q, k, v, layer.weight_update["default"]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(call("mha", model, x), original.out_proj(y), rtol=1e-11, atol=1e-11)


@both_forms
@every_attention
def test_every_split_attention_hands_its_core_what_is_left_to_do(kind, gated):
    """After norms and rotary positions: what comes out is the formula on what went in."""
    model, layer, update = one(kind, gated)
    seen = {}
    layer.register_forward_hook(lambda module, args, output: seen.update(args=args, y=output[0]))
    x = double(2, L, D)
    torch.manual_seed(1)
    y = call(kind, model, x)
    q, k, v, mask, dropout, *_ = seen["args"]
    assert mask is None
    assert dropout == 0
    torch.testing.assert_close(seen["y"], by_hand(q, k, v, update), rtol=1e-11, atol=1e-11)
    with model.disable_adapter():
        torch.manual_seed(1)
        base = call(kind, model, x)
    assert (y - base).abs().max() > 1e-2


@every_attention
def test_gate_at_zero_is_the_base_bit_for_bit_and_learns(kind):
    model, _, update = one(kind, gated=True)
    update.g.data.zero_()
    x = double(2, L, D)
    torch.manual_seed(1)
    y = call(kind, model, x)
    with model.disable_adapter():
        torch.manual_seed(1)
        assert torch.equal(y, call(kind, model, x))
    (y * double(*y.shape)).sum().backward()
    assert update.g.grad.abs().min() > 0
    assert not update.Pk.grad.any()
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


@both_forms
def test_permuted_prefix_changes_nothing(gated):
    model, _, update = one("timm", gated)
    x = double(2, L, D)
    before = call("timm", model, x)
    order = torch.tensor([2, 0, 3, 1])
    update.Pk.data, update.Pv.data = update.Pk.data[order], update.Pv.data[order]
    torch.testing.assert_close(call("timm", model, x), before, rtol=1e-12, atol=1e-12)
    update.Pv.data = update.Pv.data.flip(0)
    assert (call("timm", model, x) - before).abs().max() > 1e-3


def masks(kind):
    hidden = torch.rand(L, L, generator=torch.Generator().manual_seed(0)) > 0.5
    hidden.fill_diagonal_(False)
    added = torch.zeros(L, L).double().masked_fill(hidden, -math.inf)
    boolean = ~hidden if kind == "timm" else hidden  # True shows a key in timm, and hides it in torch and open_clip
    return hidden, [boolean, added]


@both_forms
@pytest.mark.parametrize("kind", ["mha", "open_clip", "timm"])
def test_masks_hide_keys_and_never_the_prefix(kind, gated):
    model, layer, update = one(kind, gated)
    x = double(2, L, D)
    seen = {}
    layer.register_forward_hook(lambda module, args, output: seen.update(args=args, y=output[0]))
    hidden, given = masks(kind)
    for mask in given:
        call(kind, model, x, attn_mask=mask)
        expected = by_hand(*seen["args"][:3], update, hidden=hidden)
        torch.testing.assert_close(seen["y"], expected, rtol=1e-11, atol=1e-11)


@both_forms
def test_masks_of_other_shapes_agree_with_the_full_one(gated):
    model, layer, _ = one("mha", gated)
    x = double(2, L, D)
    padding = torch.tensor([[False] * L, [False] * (L - 2) + [True] * 2])
    full = torch.zeros(2, 1, 1, L).double().masked_fill(padding[:, None, None], -math.inf).expand(2, H, L, L)
    expected = call("mha", model, x, attn_mask=full.flatten(0, 1))
    torch.testing.assert_close(call("mha", model, x, key_padding_mask=padding), expected, rtol=1e-12, atol=1e-12)
    q = double(2, H, L, D // H)
    same = torch.full((L, 1), 0.7).double()  # one column for all keys
    torch.testing.assert_close(layer(q, q, q, same), layer(q, q, q, same.expand(L, L)), rtol=1e-12, atol=1e-12)


@both_forms
def test_asking_for_weights_gives_the_same_output_and_the_weights_of_the_keys(gated):
    model, _, _ = one("mha", gated)
    x = double(2, L, D)
    mask = torch.ones(L, L).triu(1).bool()
    y, weights = model(x, x, x, attn_mask=mask, average_attn_weights=False)
    torch.testing.assert_close(y, call("mha", model, x, attn_mask=mask), rtol=1e-11, atol=1e-11)
    assert weights.shape == (2, H, L, L)
    assert not weights[..., mask].any()
    with model.disable_adapter():
        _, base = model(x, x, x, attn_mask=mask, average_attn_weights=False)
    share = weights.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(weights / share, base, rtol=1e-11, atol=1e-11)
    assert bool((share < 0.999).all()) is not gated
    averaged = model(x, x, x, attn_mask=mask)[1]
    torch.testing.assert_close(averaged, weights.mean(dim=1), rtol=1e-12, atol=1e-12)


def clip():
    vision = {"image_size": 32, "layers": 2, "width": D, "patch_size": 16, "head_width": 4}
    text = {"context_length": 8, "vocab_size": 64, "width": D, "heads": H, "layers": 2}
    return split_attention(open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text))


def test_the_text_tower_stays_causal():
    torch.manual_seed(0)
    model, _ = attached(clip())
    transformer = model.base_model.model.transformer
    x = double(1, 8, D)
    changed = x.clone()
    changed[:, 5] += 1
    mask = model.attn_mask
    before, after = (transformer(tokens, attn_mask=mask) for tokens in (x, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])
    with model.disable_adapter():
        assert (transformer(x, attn_mask=mask)[:, 0] - before[:, 0]).abs().max() > 1e-3  # it sees the whole prefix


@pytest.mark.parametrize(("gated", "more"), [(False, 0), (True, 12 * 12)])
def test_parameter_count_of_vit_b(gated, more):
    with torch.device("meta"):
        base = split_attention(VisionTransformer(num_classes=0))
    model = peft.get_peft_model(base, KvPrefixConfig(length=10, zero_init_gate=gated, target_modules=["core"]))
    assert sum(parameter.numel() for parameter in trained(model)) == 2 * 12 * 10 * 768 + more


def test_cross_attention_with_other_widths():
    torch.manual_seed(0)
    cross = split_attention(nn.MultiheadAttention(D, H, batch_first=True, kdim=5, vdim=8))
    model, (layer,) = attached(Holder(cross))
    assert {tuple(parameter.shape) for parameter in trained(model)} == {(P, D)}
    inputs = double(2, 3, D), double(2, L, 5), double(2, L, 8)
    heads = [attn(x).unflatten(-1, (H, -1)).transpose(1, 2) for attn, x in zip(
        (cross.q_proj, cross.k_proj, cross.v_proj), inputs, strict=True)]  # fmt: skip
    y = by_hand(*heads, layer.weight_update["default"]).transpose(1, 2).flatten(2)
    got = model(*inputs, need_weights=False)[0]
    torch.testing.assert_close(got, cross.out_proj(y), rtol=1e-11, atol=1e-11)


def test_start_is_normal_with_gates_at_zero_and_without_decay_of_them():
    config = KvPrefixConfig(length=400, zero_init_gate=True, target_modules=["core"])
    model = peft.get_peft_model(split_attention(VisionTransformer(**TIMM)), config)
    update = adapter_layers(model)[0][1].weight_update["default"]
    for tensor in (update.Pk, update.Pv):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.05)
    assert not update.g.any()
    assert update.no_decay == ("g",)
    assert update.facts() == pytest.approx(
        {"Pk": update.Pk.norm(dim=1).mean().item(), "Pv": update.Pv.norm(dim=1).mean().item(), "largest_gate": 0.0}
    )


def test_dropout_of_attention_acts_on_the_prefix_too():
    _, layer, _ = one("timm")
    q = double(2, H, L, D // H)
    assert torch.equal(layer(q, q, q)[0], layer(q, q, q)[0])
    assert (layer(q, q, q, dropout_p=0.5)[0] - layer(q, q, q, dropout_p=0.5)[0]).abs().max() > 1e-2


def test_loras_on_the_projections_work_beside_it():
    torch.manual_seed(0)
    base = split_attention(VisionTransformer(**TIMM)).double().eval()
    reference = copy.deepcopy(base)
    targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
    lora = LoraConfig(r=2, alpha=3, target_modules=targets)
    model = peft.inject_adapter_in_model(lora, base)
    model = peft.inject_adapter_in_model(KvPrefixConfig(length=P, target_modules=["core"]), model)
    for name, tensor in model.named_parameters():
        if "lora_" in name or "weight_update" in name:
            tensor.data = torch.randn_like(tensor, dtype=torch.float64)
    for path, attention in [(f"blocks.{i}.attn", reference.blocks[i].attn) for i in range(2)]:
        for name in targets:
            layer = model.get_submodule(f"{path}.{name}")
            getattr(attention, name).weight.data += layer.get_delta_weight("default")
    other, layers = attached(reference)
    with torch.no_grad():
        for layer, block in zip(layers, model.blocks, strict=True):
            mine = layer.weight_update["default"]
            for name, tensor in block.attn.core.weight_update["default"].named_parameters():
                mine.get_parameter(name).copy_(tensor)
    x = double(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), other(x), rtol=1e-10, atol=1e-10)


def test_two_adapters_switch_but_do_not_work_at_once():
    model, _, _ = one("timm")
    x = double(2, L, D)
    first = model(x)
    model.add_adapter("second", KvPrefixConfig(length=2, zero_init_gate=True, target_modules=["core"]))
    model.set_adapter("second")
    with model.disable_adapter():
        base = model(x)
    assert torch.equal(model(x), base)
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UserError, match="activate one"):
        model(x)
    model.set_adapter("default")
    assert torch.equal(model(x), first)


def test_fusing_is_refused_until_the_prefix_is_gone():
    torch.manual_seed(0)
    original = VisionTransformer(**TIMM).double().eval()
    x = double(1, 3, 32, 32)
    expected, names = original(x), list(original.state_dict())
    model, _ = attached(split_attention(copy.deepcopy(original)))
    with pytest.raises(UserError, match=r"attn\.core' still carries an adapter"):
        fuse_attention(model)
    fused = fuse_attention(model.unload())
    assert list(fused.state_dict()) == names
    assert torch.equal(fused(x), expected)


def test_the_core_adds_no_name_to_the_state():
    assert not [name for name in split_attention(VisionTransformer(**TIMM)).state_dict() if "core" in name]


@both_forms
def test_attaches_to_both_towers_by_its_place_saves_and_loads(gated, tmp_path):
    model = vl.attach(vl.load_backbone("tiny-clip"), KvPrefixConfig(length=4, zero_init_gate=gated), layers="-1:")
    names = [name.removeprefix("base_model.model.") for name, _ in adapter_layers(model)]
    assert sorted(names) == sorted(f"{tower.blocks[-1]}.attn.core" for tower in model.towers.values())
    for parameter in trained(model):
        parameter.data.normal_()
    vl.save(model, tmp_path / "adapter")
    again = vl.load(tmp_path / "adapter", vl.load_backbone("tiny-clip"))
    size = again.preprocess.size
    x, tokens = torch.randn(2, 3, size, size), again.tokenizer(["a cat"])
    assert torch.equal(again.encode_image(x), model.eval().encode_image(x))
    assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
    vl.attach(model, KvPrefixConfig(zero_init_gate=True), adapter_name="other")
    assert torch.equal(model.encode_text(tokens), vl.split_attention(vl.load_backbone("tiny-clip")).encode_text(tokens))


@pytest.mark.parametrize("target", ["attn", "attn.q_proj", "mlp"])
def test_other_modules_are_refused_and_the_model_is_left_as_it_was(target):
    model = split_attention(VisionTransformer(**TIMM))
    with pytest.raises(UserError, match=r"choose the core of attention"):
        peft.get_peft_model(model, KvPrefixConfig(target_modules=["core", target]))
    assert not adapter_layers(model)


def test_towers_without_split_attention_and_other_methods_have_no_such_place():
    swin = vl.load_backbone(
        "timm:swin_tiny_patch4_window7_224", "random", depths=(1, 1), embed_dim=12, num_heads=(2, 2)
    )
    with pytest.raises(UserError, match="has no 'attention' that split_attention could split"):
        vl.attach(swin, KvPrefixConfig())
    with pytest.raises(UserError, match="no module 'attention'"):
        vl.attach(vl.load_backbone("tiny-clip"), vl.BlockLoraConfig(), modules=["attention"])


def test_no_keys_are_refused():
    with pytest.raises(UserError, match="length = 0"):
        KvPrefixConfig(length=0)


REFUSED = {
    "merge_and_unload": lambda model, folder: model.merge_and_unload(),
    "merge_adapter": lambda model, folder: model.merge_adapter(),
    "vl.merge": lambda model, folder: vl.merge(model),
    "delta": lambda model, folder: adapter_layers(model)[0][1].get_delta_weight("default"),
    "export": lambda model, folder: export_lora(model, folder / "lora"),
}


@pytest.mark.parametrize("way", REFUSED)
def test_merging_and_export_are_refused(way, tmp_path):
    model, _ = attached(split_attention(VisionTransformer(**TIMM)))
    with pytest.raises(UserError, match=r"learned prefix.*keep the adapter"):
        REFUSED[way](model, tmp_path)


def test_an_initializer_is_refused():
    with pytest.raises(UserError, match="kv_prefix defines its own start"):
        vl.attach(vl.load_backbone("tiny-clip"), KvPrefixConfig(), initializer=vl.Pissa())


@both_forms
def test_compiles_as_one_graph(gated):
    model, _, _ = one("timm", gated)
    x = double(2, L, D)
    attention = model.base_model.model.attn
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), attention(x), rtol=1e-12, atol=1e-12)
