import copy

import open_clip
import peft
import pytest
import torch
from fixtures.models import trained_parts
from timm.layers import Mlp, SwiGLU
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import ViTConfig, ViTModel

import vision_lowrank as vl
from vision_lowrank.adapters.mixlora import MixLoraConfig, Routing, balance_loss
from vision_lowrank.adapters.tuner import adapter_layers
from vision_lowrank.attention.split import split_attention
from vision_lowrank.errors import UserError
from vision_lowrank.export.lora import export_lora

D, H = 12, 20
TIMM = {"img_size": 32, "patch_size": 16, "embed_dim": D, "depth": 2, "num_heads": 2, "num_classes": 0}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")


class Block(nn.Module):
    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        self.mlp = Mlp(D, H, norm_layer=norm)

    def forward(self, x):
        return x + self.mlp(x)


def timm_vit():
    return split_attention(VisionTransformer(**TIMM))


def clip():
    vision = {"image_size": 32, "layers": 2, "width": D, "patch_size": 16, "head_width": 6}
    text = {"context_length": 8, "vocab_size": 64, "width": D, "heads": 2, "layers": 2}
    return split_attention(open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text)).visual


def hf_vit():
    sizes = {"hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": H}
    return ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes), add_pooling_layer=False)


HOSTS = {"timm": timm_vit, "open_clip": clip, "hf": hf_vit}
hosts = pytest.mark.parametrize("host", HOSTS)


def attached(base, targets=("q_proj", "mlp"), **options):
    config = MixLoraConfig(**{"r": 3, "alpha": 2.0, "experts": 4, "target_modules": list(targets)} | options)
    return peft.get_peft_model(base.double(), config, autocast_adapter_dtype=False).eval()


def one_block(norm=nn.LayerNorm, **options):
    """A block with random experts and its update."""
    torch.manual_seed(0)
    model = attached(Block(norm), ["mlp"], **options)
    update = model.base_model.model.mlp.weight_update["default"]
    with torch.no_grad():
        for parameter in update.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model, update


def tokens(*shape):
    return torch.randn(*(shape or (2, 5)), D, dtype=torch.float64)


@torch.no_grad()
def run(model):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    output = model(pixels)
    return getattr(output, "last_hidden_state", output)


def expert(model, update, number, x):
    """F_e(x) by the formula, for one token."""
    mlp, e, s = model.base_model.model.mlp.base_layer, number, update.scale
    u = mlp.fc1(x) + s * update.B1[e] @ (update.A1[e] @ x)
    a = mlp.norm(nn.functional.gelu(u))
    return mlp.fc2(a) + s * update.B2[e] @ (update.A2[e] @ a)


def naive(model, update, x):
    """Token by token, expert by expert."""
    outputs = []
    for token in x.reshape(-1, D):
        p = torch.softmax(update.router @ token, dim=0)
        chosen = p.argsort(descending=True)[: update.top_k]
        w = p[chosen] / p[chosen].sum() if update.top_k > 1 else p[chosen]
        y = sum(w[j] * expert(model, update, e, token) for j, e in enumerate(chosen))
        outputs.append(y + (1 - w.sum()) * model.base_model.model.mlp.base_layer(token))
    return torch.stack(outputs).reshape(x.shape)


@hosts
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (4, 1), (4, 2), (3, 3)])
def test_starts_at_the_base_whatever_the_router(host, experts, top_k):
    torch.manual_seed(0)
    model = attached(HOSTS[host](), experts=experts, top_k=top_k)
    for _, layer in adapter_layers(model):
        for name, parameter in layer.weight_update.named_parameters():
            if name.endswith("router"):
                parameter.data.normal_()
    with model.disable_adapter():
        base = run(model)
    torch.testing.assert_close(run(model), base, rtol=0, atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("norm", [None, nn.LayerNorm])
def test_equals_a_loop_over_tokens_and_experts(top_k, norm):
    model, update = one_block(norm, top_k=top_k)
    x = tokens()
    torch.testing.assert_close(model(x) - x, naive(model, update, x), rtol=1e-11, atol=1e-11)


def test_gradients_equal_those_of_the_loop():
    model, update = one_block()
    x, G = tokens(), tokens()
    trained = list(update.parameters())
    ours = torch.autograd.grad(((model(x) - x) * G).sum(), trained)
    theirs = torch.autograd.grad((naive(model, update, x) * G).sum(), trained)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_weights_sum_to_one_over_exactly_k_experts():
    _, update = one_block(top_k=3)
    weights, choices = update.route(tokens(50))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(50, dtype=torch.float64))
    assert torch.equal(choices.sum(dim=(1, 2)), torch.full((50,), 3.0, dtype=torch.float64))
    assert choices.sum(dim=1).max() == 1


def test_all_experts_under_a_uniform_router_are_their_mean():
    model, update = one_block(top_k=4)
    update.router.data.zero_()
    x = tokens(1)
    mean = sum(expert(model, update, e, x[0]) for e in range(4)) / 4
    torch.testing.assert_close((model(x) - x)[0], mean, rtol=1e-11, atol=1e-11)


def test_one_expert_is_plain_lora_on_both_linears():
    model, update = one_block(experts=1, top_k=1)
    mlp = copy.deepcopy(model.base_model.model.mlp.base_layer)
    with torch.no_grad():
        mlp.fc1.weight += 2 / 3 * update.B1[0] @ update.A1[0]
        mlp.fc2.weight += 2 / 3 * update.B2[0] @ update.A2[0]
    x = tokens()
    torch.testing.assert_close(model(x), x + mlp(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("top_k", [1, 2])
def test_router_learns_from_the_balance_loss_alone_at_the_start(top_k):
    torch.manual_seed(0)
    model = attached(Block(), ["mlp"], top_k=top_k).train()
    router = model.base_model.model.mlp.weight_update["default"].router
    (task,) = torch.autograd.grad(model(tokens()).square().sum(), router, retain_graph=True)
    assert task.abs().max() < 1e-12
    (balance,) = torch.autograd.grad(extra(model), router)
    assert balance.abs().max() > 1e-6


def test_router_gets_a_task_gradient_with_one_expert_per_token():
    model, update = one_block(top_k=1)
    model(tokens()).square().sum().backward()
    assert update.router.grad.abs().max() > 1e-6


def extra(model):
    values = [value for module in trained_parts(model) for value in module.extra_losses().values()]
    assert len(values) == 1
    return values[0]


@pytest.mark.parametrize(("top_k", "experts"), [(1, 8), (2, 8), (3, 4)])
def test_balance_loss_is_k_when_balanced_and_e_when_collapsed(top_k, experts):
    uniform = torch.full((experts,), 1 / experts)
    assert balance_loss([Routing(uniform.expand(top_k, -1), uniform, 9)], "layer") == pytest.approx(top_k)
    first = torch.eye(experts)
    assert balance_loss([Routing(first[:1], first[0], 9)], "layer") == pytest.approx(experts)


@pytest.mark.parametrize("aux_scope", ["layer", "model"])
def test_balance_loss_of_a_model_follows_the_formula(aux_scope):
    """Recomputed from the inputs of every router; three pictures of four patches and a class token."""
    torch.manual_seed(0)
    model = attached(timm_vit(), ["mlp"], aux_scope=aux_scope, balance=0.3).train()
    layers = [layer for _, layer in adapter_layers(model)]
    inputs = {}
    for layer in layers:
        layer.weight_update["default"].router.data.normal_()
        layer.register_forward_pre_hook(lambda module, args: inputs.update({module: args[0].detach().flatten(0, -2)}))
    model(torch.randn(3, 3, 32, 32, dtype=torch.float64))
    p = torch.stack([(inputs[layer] @ layer.weight_update["default"].router.T).softmax(-1) for layer in layers])
    chosen = p.argsort(dim=-1, descending=True)[..., :2]
    f = torch.stack([(chosen == e).double() for e in range(4)], dim=-1)  # (layers, tokens, k, E)
    if aux_scope == "model":
        p, f = p.flatten(0, 1)[None], f.flatten(0, 1)[None]
    expected = 0.3 * 4 * (f.mean(dim=1) * p.mean(dim=1)[:, None]).sum(dim=(1, 2)).mean()
    assert p.shape[1] * p.shape[0] == 2 * 3 * 5
    torch.testing.assert_close(extra(model), expected, rtol=1e-12, atol=0)


def test_only_the_last_training_forward_counts_and_only_once():
    model, _ = one_block()
    model.train()
    model(tokens(40))
    x = tokens(7)
    model(x)
    loss = extra(model)
    assert not any(module.extra_losses() for module in trained_parts(model))
    model.eval()(tokens())
    assert not any(module.extra_losses() for module in trained_parts(model))
    model.train()(x)
    assert torch.equal(extra(model), loss)


def test_checkpointed_forward_counts_once_with_the_same_gradient():
    gradients = []
    for call in (lambda model, x: model(x), lambda model, x: checkpoint(model, x, use_reentrant=False)):
        model, update = one_block()
        torch.manual_seed(3)
        loss = call(model.train(), tokens()).square().sum()
        (loss + 50 * extra(model)).backward()
        gradients.append([p.grad for p in update.parameters()])
        assert not any(module.extra_losses() for module in trained_parts(model))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_permuted_experts_give_the_same_output():
    model, update = one_block()
    x = tokens()
    before = model(x)
    for parameter in update.parameters():
        parameter.data = parameter.data[[2, 0, 3, 1]]
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)


def test_token_does_not_depend_on_the_others():
    model, _ = one_block()
    x = tokens(9)
    torch.testing.assert_close(model(x)[4:5], model(x[4:5]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_accepts_any_leading_shape(shape):
    layer = one_block()[0].base_model.model.mlp
    x = torch.randn(*shape, D, dtype=torch.float64)
    flat = torch.stack([layer(row) for row in x.reshape(-1, D)]).reshape(x.shape)
    torch.testing.assert_close(layer(x), flat, rtol=1e-12, atol=1e-12)


def test_idle_expert_gets_a_gradient_of_zero():
    model, update = one_block()
    x = tokens().abs()
    update.router.data[1] = -100.0
    model(x).square().sum().backward()
    for factor in (update.A1, update.B1, update.A2, update.B2):
        assert not factor.grad[1].any()
        assert factor.grad[[0, 2, 3]].any()


def test_parameter_count_of_vit_b():
    """Per block 491,520 in experts and 6,144 in the router; q, k, v and o on their own are 49,152."""
    with torch.device("meta"):
        base = split_attention(VisionTransformer(depth=2, num_classes=0))
    config = MixLoraConfig(r=8, experts=8, target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "mlp"])
    model = peft.get_peft_model(base, config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * (491_520 + 6_144 + 49_152)


def test_router_has_no_weight_decay_and_small_random_rows():
    update = attached(Block(), ["mlp"], experts=4).base_model.model.mlp.weight_update["default"]
    assert update.no_decay == ("router",)
    assert 0 < update.router.abs().max() < 0.2
    assert not update.B1.any()
    assert update.A1.abs().max() <= D**-0.5
    assert update.A2.abs().max() <= H**-0.5


def test_facts_are_load_and_entropy_of_the_last_forward():
    model, update = one_block()
    update.router.data.zero_()
    update.router.data[3, 0], update.router.data[1, 0] = 60.0, 30.0
    x = tokens(10)
    x[:, 0] = 1.0
    model(x)
    facts = update.facts()
    assert [facts[f"load_{e}"] for e in range(4)] == [0, 1, 0, 1]
    assert facts["entropy"] == pytest.approx(0, abs=1e-9)
    update.router.data.zero_()
    model(x)
    assert update.facts()["entropy"] == pytest.approx(update.facts()["largest_entropy"])


def test_jitter_acts_in_training_on_a_copy():
    model, _ = one_block(jitter=0.3)
    x = tokens()
    kept = x.clone()
    assert torch.equal(model(x), model(x))
    model.train()
    assert (model(x) - model(x)).abs().max() > 1e-3
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base_keeps_float32_experts_and_router(dtype):
    torch.manual_seed(0)
    base = Block().to(dtype)
    wide = copy.deepcopy(base).float()
    outputs = []
    for host in (base, wide):
        torch.manual_seed(1)
        model = peft.get_peft_model(host, MixLoraConfig(r=3, experts=4, top_k=4, target_modules=["mlp"])).eval()
        update = model.base_model.model.mlp.weight_update["default"]
        assert {p.dtype for p in update.parameters()} == {torch.float32}
        for parameter in update.parameters():
            parameter.data.normal_(std=0.3)
        outputs.append(model(torch.linspace(-1, 1, 5 * D).reshape(5, D).to(next(host.parameters()).dtype)))
    assert outputs[0].dtype == dtype
    torch.testing.assert_close(outputs[0].float(), outputs[1], rtol=0.05, atol=0.1)


def test_autocast_leaves_the_router_in_float32():
    _, update = one_block()
    update.float()
    x = tokens(30).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = update.route(x)[0]
    assert torch.equal(inside, update.route(x)[0])


def test_compiles_as_one_graph():
    model, _ = one_block()
    layer = model.base_model.model.mlp
    x = tokens()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-12, atol=1e-12)


@hosts
def test_saved_experts_give_the_same_output(host, tmp_path):
    torch.manual_seed(0)
    base = HOSTS[host]()
    model = attached(copy.deepcopy(base))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(base.double(), tmp_path, autocast_adapter_dtype=False).eval()
    assert torch.equal(run(again), run(model))
    with model.disable_adapter():
        assert not torch.equal(run(model), run(again))


def test_two_adapters_switch_but_do_not_work_at_once():
    model, _ = one_block()
    x = tokens()
    first = model(x)
    model.add_adapter("second", MixLoraConfig(r=2, experts=2, target_modules=["mlp"]))
    model.set_adapter("second")
    torch.testing.assert_close(model(x), x + model.base_model.model.mlp.base_layer(x), rtol=1e-6, atol=1e-6)
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UserError, match="activate one"):
        model(x)
    model.set_adapter("default")
    assert torch.equal(model(x), first)


MERGES = {
    "merge_adapter": lambda model, folder: model.merge_adapter(),
    "merge_and_unload": lambda model, folder: model.merge_and_unload(),
    "layer": lambda model, folder: model.base_model.model.blocks[0].mlp.merge(),
    "delta": lambda model, folder: model.base_model.model.blocks[0].mlp.get_delta_weight("default"),
    "vl.merge": lambda model, folder: vl.merge(model),
}


@pytest.mark.parametrize("way", MERGES)
def test_merging_is_refused_before_anything_changes(way, tmp_path):
    model = attached(timm_vit())
    attention = model.base_model.model.blocks[0].attn.q_proj
    attention.weight_update["default"].B.data.normal_()
    before = attention.base_layer.weight.clone()
    with pytest.raises(UserError, match="routes each token"):
        MERGES[way](model, tmp_path)
    assert torch.equal(attention.base_layer.weight, before)


def test_export_is_refused(tmp_path):
    with pytest.raises(UserError, match="routes each token"):
        export_lora(attached(timm_vit()), tmp_path / "lora")


def test_attaches_to_towers_by_the_logical_name_mlp(tmp_path):
    config = MixLoraConfig(r=2, experts=2, top_k=1)
    model = vl.attach(vl.load_backbone("tiny-clip"), config, modules=["q", "v", "mlp"], layers="-1:")
    kinds = [type(layer).__name__ for _, layer in adapter_layers(model)]
    assert sorted(kinds) == ["AdapterLayer"] * 4 + ["MixLoraLayer"] * 2
    vl.save(model, tmp_path / "adapter")
    again = vl.load(tmp_path / "adapter", vl.load_backbone("tiny-clip"))
    pixels = torch.randn(2, 3, again.preprocess.size, again.preprocess.size)
    assert torch.equal(again.encode_image(pixels), model.eval().encode_image(pixels))


def test_mlp_is_not_for_methods_of_linears():
    with pytest.raises(UserError, match="no module 'mlp'"):
        vl.attach(vl.load_backbone("tiny-clip"), vl.BlockLoraConfig(), modules=["mlp"])


def test_model_may_look_into_its_mlp():
    layer = one_block()[0].base_model.model.mlp
    assert layer.fc1 is layer.base_layer.fc1
    with pytest.raises(AttributeError, match="no attribute 'fc3'"):
        _ = layer.fc3


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = SwiGLU(D, H)
        self.deep = nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, H), nn.GELU(), nn.Linear(H, D))
        self.fc = nn.Linear(D, D)


@pytest.mark.parametrize("name", ["mlp", "deep"])
def test_other_kinds_of_mlp_are_refused_and_the_model_is_left_as_it_was(name):
    model = Gated()
    with pytest.raises(UserError, match="without gate"):
        peft.get_peft_model(model, MixLoraConfig(r=2, target_modules=["fc", name]))
    assert not adapter_layers(model)


@pytest.mark.parametrize(
    ("targets", "message"),
    [(["q_proj"], "add mlp"), (["mlp", "fc1"], "lies inside 'mlp'"), (["mlp", "mlp.fc1"], "lies")],
)
def test_targets_without_mlp_or_inside_it_are_refused(targets, message):
    with pytest.raises(UserError, match=message):
        attached(timm_vit(), targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 0}, "experts = 0"),
        ({"experts": 2, "top_k": 3}, "top_k = 3"),
        ({"balance": -1.0}, "balance = -1.0"),
        ({"jitter": 1.0}, "jitter = 1.0"),
        ({"aux_scope": "layers"}, "Did you mean 'layer'"),
        ({"r": 13}, "largest r allowed there is 12"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        attached(Block(), ["mlp"], **options)


def test_a_refused_initializer_leaves_the_backbone_as_it_was():
    backbone = vl.load_backbone("tiny-clip")
    names = [name for name, _ in vl.split_attention(backbone).named_modules()]
    with pytest.raises(UserError, match="mixlora defines its own start"):
        vl.attach(backbone, MixLoraConfig(r=2, experts=2), initializer=vl.Pissa())
    assert [name for name, _ in backbone.named_modules()] == names
