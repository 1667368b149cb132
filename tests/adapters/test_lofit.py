import copy

import open_clip
import peft
import pytest
import torch
from fixtures.models import trained_parts
from fixtures.phased_task import train
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import ViTConfig, ViTModel

import vision_lowrank as vl
from vision_lowrank.adapters.lofit import LofitConfig, choose
from vision_lowrank.adapters.tuner import adapter_layers
from vision_lowrank.attention.split import split_attention
from vision_lowrank.errors import UserError
from vision_lowrank.export.lora import export_lora
from vision_lowrank.targets.coverage import coverage

WIDTH, HEADS, DIM = 12, 3, 4
SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def timm_vit():
    return split_attention(VisionTransformer(**SMALL, num_classes=0))


def clip():
    vision = {"image_size": 32, "layers": 2, "width": WIDTH, "patch_size": 16, "head_width": DIM}
    text = {"context_length": 8, "vocab_size": 64, "width": WIDTH, "heads": HEADS, "layers": 2}
    return split_attention(open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text)).visual


def hf_vit():
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 24}
    return ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes), add_pooling_layer=False)


HOSTS = {"timm": (timm_vit, "out_proj"), "open_clip": (clip, "out_proj"), "hf": (hf_vit, "o_proj")}
hosts = pytest.mark.parametrize("host", HOSTS)


def attached(host="timm", bias=True, **options):
    torch.manual_seed(0)
    build, target = HOSTS[host]
    base = build().double().eval()
    for name, module in base.named_modules():
        if name.endswith(target) and not bias:
            module.bias = None
    config = LofitConfig(target_modules=[target], **options)
    return peft.get_peft_model(base, config, autocast_adapter_dtype=False).eval()


def updates(model):
    return {name: layer.weight_update["default"] for name, layer in adapter_layers(model)}


def in_phase_offsets(model):
    model.peft_config["default"].begin_phase(updates(model), "offsets")
    return model


@torch.no_grad()
def run(model):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    output = model(pixels)
    return getattr(output, "last_hidden_state", output)


@torch.no_grad()
def filled(model):
    """Both scales and offsets, neither small."""
    for update in updates(model).values():
        update.scale_heads(0.5)
        scales = update.a
        update.offset_heads([0, 2], 0.5)
        update.a = scales
    return model


@hosts
def test_zero_edits_are_the_base_bit_for_bit(host):
    model = attached(host, init_std=0.0)
    with model.disable_adapter():
        base = run(model)
    assert torch.equal(run(model), base)
    assert torch.equal(run(in_phase_offsets(model)), base)


@hosts
@pytest.mark.parametrize("bias", [True, False])
def test_edited_inputs_equal_merged_weights(host, bias):
    model = filled(attached(host, bias))
    before = {name: copy.deepcopy(layer.base_layer.state_dict()) for name, layer in adapter_layers(model)}
    edited = run(model)
    model.merge_adapter()
    for name, layer in adapter_layers(model):
        update, old, new = layer.weight_update["default"], before[name], layer.base_layer.state_dict()
        v = torch.zeros(HEADS, DIM, dtype=torch.float64)
        v[[0, 2]] = update.v.detach()
        torch.testing.assert_close(new["weight"], old["weight"] * (1 + update.a.detach().flatten()))
        shift = old["weight"] @ v.flatten()
        torch.testing.assert_close(new["bias"], shift + old["bias"] if bias else shift)
    torch.testing.assert_close(run(model), edited, rtol=0, atol=1e-12)
    model.unmerge_adapter()
    for name, layer in adapter_layers(model):
        assert layer.base_layer.state_dict().keys() == before[name].keys()
        assert all(torch.equal(tensor, before[name][key]) for key, tensor in layer.base_layer.state_dict().items())
    assert torch.equal(run(model), edited)


def test_merged_model_has_no_adapter_left():
    model = filled(attached(bias=False))
    edited = run(model)
    merged = model.merge_and_unload()
    assert not adapter_layers(merged)
    torch.testing.assert_close(run(merged), edited, rtol=0, atol=1e-12)


def test_offset_of_a_head_acts_through_its_own_columns_only():
    model = in_phase_offsets(attached(selection={"blocks.0.attn.out_proj": [1]}, init_std=0.5))
    layer = model.base_model.model.blocks[0].attn.out_proj
    z = torch.randn(4, 5, WIDTH, dtype=torch.float64)
    W, b = layer.base_layer.weight, layer.base_layer.bias
    v = layer.weight_update["default"].v[0]
    expected = z @ W.T + b + W[:, DIM : 2 * DIM] @ v
    torch.testing.assert_close(layer(z), expected, rtol=0, atol=1e-12)
    W.data[:, DIM : 2 * DIM] = 0
    torch.testing.assert_close(layer(z), z @ W.T + b, rtol=0, atol=1e-12)


def test_head_order_is_that_of_the_attention():
    """Scaling a head's part of W equals scaling that head's values."""
    model, base = attached(selection={}), attached(selection={})
    update = model.base_model.model.blocks[1].attn.out_proj.weight_update["default"]
    update.scale_heads(0.0)
    update.a.data[2] = 0.7
    value = base.base_model.model.blocks[1].attn.v_proj
    value.weight.data[2 * DIM :] *= 1.7
    value.bias.data[2 * DIM :] *= 1.7
    torch.testing.assert_close(run(model), run(base), rtol=0, atol=1e-12)


def test_parameters_are_all_scales_and_then_the_offsets_of_the_chosen_heads():
    model = attached(heads=2)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * HEADS * DIM
    in_phase_offsets(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 2 * DIM
    model(torch.randn(2, 3, 32, 32, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in trained)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_training_selects_the_head_that_carries_the_label():
    """Only head 1 of the second layer sees the label; scales of the others have nothing to gain."""
    torch.manual_seed(0)
    weight = torch.randn(2, HEADS * DIM, dtype=torch.float64)
    layers = nn.ModuleList([Attention(weight), Attention(weight)])
    model = peft.get_peft_model(Sum(layers), LofitConfig(target_modules=["proj"], heads=1, l1=1e-3, init_std=0.0))
    label = torch.randn(64, dtype=torch.float64).sign()
    z = torch.randn(2, 64, HEADS, DIM, dtype=torch.float64) * 0.1
    z[1, :, 1] += 0.2 * label[:, None] * (weight[1] - weight[0]).unflatten(0, (HEADS, DIM))[1]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(z.flatten(2)), ((label + 1) / 2).long())
        loss = loss + sum(m.extra_losses()["heads"] for m in trained_parts(model))
        loss.backward()
        optimizer.step()
    in_phase_offsets(model)
    assert model.peft_config["default"].selection == {"layers.1.proj": [1]}


class Attention(nn.Module):
    num_heads = HEADS

    def __init__(self, weight):
        super().__init__()
        self.proj = nn.Linear(HEADS * DIM, 2, bias=False).double()
        self.proj.weight.data.copy_(weight)


class Sum(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, z):
        return sum(layer.proj(part) for layer, part in zip(self.layers, z, strict=True))


def test_selection_is_global_within_a_tower_and_ties_go_to_the_earlier_head():
    scores = {
        "visual.blocks.0.o": torch.tensor([0.1, 0.9, 0.5]),
        "visual.blocks.1.o": torch.tensor([0.8, 0.5, 0.5]),
        "text.blocks.0.o": torch.tensor([3.0, 4.0]),
    }
    vision = {name: values for name, values in scores.items() if name.startswith("visual")}
    assert choose(vision, LofitConfig(heads=3)) == {"visual.blocks.0.o": [1, 2], "visual.blocks.1.o": [0]}
    assert choose(vision, LofitConfig(heads=3, ranking="bottom")) == {
        "visual.blocks.0.o": [0, 2],
        "visual.blocks.1.o": [1],
    }
    assert choose(scores, LofitConfig(heads=1)) == {"visual.blocks.0.o": [1], "text.blocks.0.o": [1]}
    assert choose(scores, LofitConfig(heads=2, per_tower=False)) == {"text.blocks.0.o": [0, 1]}
    assert sum(map(len, choose(scores, LofitConfig(heads=0.5)).values())) == 3 + 1
    assert sum(map(len, choose(vision, LofitConfig(heads=4, ranking="random")).values())) == 4


def test_scores_are_norms_per_head():
    model = attached(init_std=1.0)
    for update in updates(model).values():
        torch.testing.assert_close(update.scores(), update.a.detach().square().mean(dim=1).sqrt())


@pytest.mark.parametrize(("l1", "zero"), [(10.0, True), (0.0, False)])
def test_l1_decides_whether_scales_vanish(l1, zero):
    model = attached(l1=l1, init_std=0.02)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4)
    for _ in range(80):
        optimizer.zero_grad()
        loss = 0.01 * model(torch.ones(2, 3, 32, 32, dtype=torch.float64)).square().mean()
        extra = sum(value for m in trained_parts(model) for value in m.extra_losses().values())
        (loss + extra).backward()
        optimizer.step()
    largest = max(float(update.a.detach().abs().max()) for update in updates(model).values())
    assert (largest < 2e-3) == zero


def test_l1_is_the_sum_of_all_scales_and_ends_with_the_selection():
    model = attached(l1=0.3, init_std=1.0)
    total = sum(update.extra_losses()["heads"] for update in updates(model).values())
    torch.testing.assert_close(total, 0.3 * sum(u.a.abs().sum() for u in updates(model).values()))
    in_phase_offsets(model)
    assert all(update.extra_losses() == {} for update in updates(model).values())


def test_offsets_add_the_same_vector_for_every_token_and_picture():
    model = in_phase_offsets(attached(heads=2, init_std=0.5))
    for _, layer in adapter_layers(model):
        z = torch.randn(3, 5, WIDTH, dtype=torch.float64)
        change = (layer(z) - layer.base_layer(z)).flatten(0, 1)
        torch.testing.assert_close(change, change[:1].expand_as(change), rtol=0, atol=1e-12)


def test_offsets_of_all_heads_reach_every_bias():
    model = in_phase_offsets(attached(heads=1.0, init_std=0.0))
    layer = adapter_layers(model)[0][1]
    wanted = torch.randn(WIDTH, dtype=torch.float64)
    v = torch.linalg.solve(layer.base_layer.weight, wanted)
    layer.weight_update["default"].v.data.copy_(v.unflatten(0, (HEADS, DIM)))
    z = torch.randn(3, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(layer(z) - layer.base_layer(z), wanted.expand(3, -1), rtol=0, atol=1e-9)


@hosts
def test_saved_offsets_load_on_a_fresh_model_and_equal_the_merged_one(host, tmp_path):
    model = in_phase_offsets(attached(host, heads=2, init_std=0.5))
    output = run(model)
    model.save_pretrained(tmp_path)
    state = peft.utils.load_peft_weights(tmp_path, device="cpu")
    assert sum(tensor.numel() for key, tensor in state.items() if key.endswith(".v")) == 2 * DIM
    assert not any(key.endswith(".a") for key in state)
    torch.manual_seed(0)
    base = HOSTS[host][0]().double().eval()
    again = peft.PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=False)
    assert torch.equal(run(again), output)
    assert list(again.peft_config["default"].phases()) == ["offsets"]
    torch.testing.assert_close(run(again.merge_and_unload()), output, rtol=0, atol=1e-12)


def test_phases_start_over():
    model, config = attached(heads=2), LofitConfig()
    assert list(config.phases()) == ["select", "offsets"]
    assert config.phases()["offsets"] == {"lr": 1e-2, "weight_decay": 0.0}
    in_phase_offsets(model)
    chosen = model.peft_config["default"].selection
    in_phase_offsets(model)
    assert model.peft_config["default"].selection == chosen
    model.peft_config["default"].begin_phase(updates(model), "select")
    assert model.peft_config["default"].selection is None
    assert all(update.a is not None and update.v is None for update in updates(model).values())


@pytest.mark.parametrize("crash_at", [3, 6, 9])
def test_resumed_run_trains_the_same_heads_to_the_same_offsets(tmp_path, crash_at):
    def config():
        return LofitConfig(heads=2, head_dim=2, target_modules=["proj"])

    (whole,) = train(config(), tmp_path / "whole").updates
    with pytest.raises(RuntimeError, match="power cut"):
        train(config(), tmp_path / "resumed", crash_at)
    (resumed,) = train(config(), tmp_path / "resumed").updates
    assert torch.equal(resumed.heads, whole.heads)
    assert torch.equal(resumed.v, whole.v)
    assert resumed.v.abs().min() > 1e-3


@pytest.mark.parametrize(("bias", "shape"), [(True, ()), (False, (2, 3, 4))])
def test_layer_compiles_as_one_graph_and_takes_any_leading_shape(bias, shape):
    layer = in_phase_offsets(attached(heads=1.0, bias=bias, init_std=0.5)).base_model.model.blocks[0].attn.out_proj
    z = torch.randn(*shape, WIDTH, dtype=torch.float64)
    expected = layer.base_layer(z + layer.weight_update["default"].v.flatten())
    torch.testing.assert_close(layer(z), expected, rtol=0, atol=1e-12)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), expected, rtol=0, atol=1e-12)


def test_two_active_adapters_add_their_edits_and_merge_as_they_run():
    model = in_phase_offsets(attached(heads=2, init_std=0.5))
    model.add_adapter("second", LofitConfig(target_modules=["out_proj"], init_std=0.5))
    model.base_model.set_adapter(["default", "second"])
    for _, layer in adapter_layers(model):
        z = torch.randn(3, WIDTH, dtype=torch.float64)
        a = layer.weight_update["second"].a.flatten()
        v = layer.weight_update["default"].offsets()
        expected = layer.base_layer(z + a * z + (0 if v is None else v))
        torch.testing.assert_close(layer(z), expected, rtol=0, atol=1e-12)
    edited = run(model)
    model.merge_adapter()
    torch.testing.assert_close(run(model), edited, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_export_to_lora_is_refused_because_of_the_bias(bias, tmp_path):
    with pytest.raises(UserError, match="changes biases"):
        export_lora(in_phase_offsets(attached(bias=bias, heads=2, init_std=0.5)), tmp_path / "lora")


def test_attached_to_both_towers_every_head_is_reached():
    model = vl.attach(vl.load_backbone("tiny-clip", weights="random"), LofitConfig(), modules=["o"])
    config = model.peft_config["default"]
    config.begin_phase(updates(model), "offsets")
    assert not coverage(model).dead
    towers = {name.split(".blocks")[0].split(".resblocks")[0] for name in config.selection}
    assert len(towers) == 2


@pytest.mark.parametrize("module", ["q_proj", "fc1"])
def test_other_layers_are_refused(module):
    with pytest.raises(UserError, match=r"modules=\[o\]"):
        peft.get_peft_model(timm_vit(), LofitConfig(target_modules=[module]))


def test_projection_without_known_heads_needs_head_dim():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(WIDTH, 5)

    with pytest.raises(UserError, match="set head_dim"):
        peft.get_peft_model(Plain(), LofitConfig(target_modules=["proj"]))
    model = peft.get_peft_model(Plain(), LofitConfig(target_modules=["proj"], head_dim=DIM))
    assert model.base_model.model.proj.weight_update["default"].a.shape == (HEADS, DIM)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads = 0"),
        ({"heads": 1.5}, "heads = 1.5"),
        ({"ranking": "tpo"}, "Did you mean 'top'"),
        ({"l1": -1.0}, "l1 = -1.0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        LofitConfig(**options)


def test_more_heads_than_there_are_is_refused():
    with pytest.raises(UserError, match="has only 6 heads"):
        in_phase_offsets(attached(heads=7))


def clip_backbone():
    torch.manual_seed(0)
    return vl.load_backbone("tiny-clip", weights="random").eval()


def selected(**options):
    """A model of two towers after its selection phase, with scores that differ from head to head."""
    model = vl.attach(clip_backbone(), LofitConfig(heads=2, **options))
    vl.begin_phase(model, "select")
    with torch.no_grad():
        for number, update in enumerate(updates(model).values()):
            update.a.copy_(torch.randn(update.a.shape, generator=torch.Generator().manual_seed(number)))
    vl.begin_phase(model, "offsets")
    return model


def test_another_number_of_heads_needs_no_new_selection(tmp_path):
    model = selected()
    vl.save(model, tmp_path / "two")
    config = LofitConfig(heads=5, ranking_from=str(tmp_path / "two"))
    again = vl.attach(clip_backbone(), config)
    assert list(vl.phases(again)) == ["offsets"]
    scores = model.peft_config["default"].scores
    assert again.peft_config["default"].selection == choose({n: torch.tensor(s) for n, s in scores.items()}, config)
    assert sum(u.facts()["chosen"] for u in updates(again).values()) == 5 * 2
    vl.save(again, tmp_path / "five")
    assert str(tmp_path) not in (tmp_path / "five" / "adapter_config.json").read_text()
    assert vl.load(tmp_path / "five", clip_backbone()).peft_config["default"].scores == scores


def test_a_ranking_of_other_layers_or_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no lofit adapter with scores"):
        LofitConfig(ranking_from=str(tmp_path))
    vl.save(selected(), tmp_path / "a")
    with pytest.raises(UserError, match="scores are of other layers"):
        vl.attach(clip_backbone(), LofitConfig(ranking_from=str(tmp_path / "a")), towers=("vision",))


def test_the_class_token_alone_is_edited():
    base = clip_backbone()
    config = LofitConfig(heads=4, tokens="cls", init_std=1.0)
    model = vl.attach(base, config, towers=("vision",), layers="-1:")
    ((_, layer),) = adapter_layers(model)
    z = torch.randn(2, 5, layer.in_features)
    with torch.no_grad():
        edited, plain = layer(z), layer.base_layer(z)
        everywhere = layer.base_layer(z + updates(model).popitem()[1].scales() * z)
    assert torch.equal(edited[:, 1:], plain[:, 1:])
    torch.testing.assert_close(edited[:, 0], everywhere[:, 0])
    assert not torch.allclose(edited[:, 0], plain[:, 0])
    for merge in (vl.merge, lambda m: m.merge_adapter()):
        with pytest.raises(UserError, match="edits the class token alone"):
            merge(model)


@pytest.mark.parametrize("name", ["tiny-clip", "timm:resnet10t"])
def test_cls_needs_a_class_token(name):
    base = vl.load_backbone(name, weights="random")
    with pytest.raises(UserError, match=r"class token|no vision tower"):
        vl.attach(base, LofitConfig(tokens="cls"), towers=None if base.towers else ("vision",))
