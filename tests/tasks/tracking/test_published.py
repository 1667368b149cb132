"""Published LoRAT files of both forms, made small: they load by their key names and compute what they hold."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import ArtefactError, UserError
from vision_lowrank.tasks.tracking.cropping import Cropping
from vision_lowrank.tasks.tracking.model import TrackingModel
from vision_lowrank.tasks.tracking.published import load_published

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 80}
CROPS = Cropping(search=32, template=16, search_factor=4.0, template_factor=2.0)
SWIGLU = ("mlp.w12", "mlp.w3")


def trained_tensors(width=48, hidden=192, rank=4, names=("mlp.fc1", "mlp.fc2")):
    """What a file of 2024 holds, random."""
    torch.manual_seed(5)
    sizes = {f"attn.qkv.{letter}": (width, width) for letter in "qkv"} | {"attn.proj": (width, width)}
    sizes |= {names[0]: (width, hidden), names[1]: (hidden if names[0] == "mlp.fc1" else hidden // 2, width)}
    state = {"token_type_embed": torch.randn(3, width), "lora_alpha": torch.tensor(2 * rank)}
    state["use_rslora"] = torch.tensor(False)
    for block in range(2):
        for name, (before, after) in sizes.items():
            state[f"blocks.{block}.{name}.lora.A"] = 0.1 * torch.randn(rank, before)
            state[f"blocks.{block}.{name}.lora.B"] = 0.1 * torch.randn(after, rank)
    for kind, out in (("cls", 1), ("reg", 4)):
        for layer, last in ((0, width), (1, width), (2, out)):
            state[f"head.{kind}_mlp.layers.{layer}.weight"] = 0.2 * torch.randn(last, width)
            state[f"head.{kind}_mlp.layers.{layer}.bias"] = torch.randn(last)
    return state


def base(model="vit_small_patch14_dinov2", **more):
    torch.manual_seed(6)
    backbone = load_backbone(f"timm:{model}", "random", **SMALL | more)
    for block in backbone.model.blocks:
        torch.nn.init.ones_(block.ls1.gamma)
        torch.nn.init.ones_(block.ls2.gamma)
    backbone.take_identity()
    return backbone


def by_hand(state, scale):
    """The file's LoRA added to the base's weights, in one plain tracker."""
    backbone, names = base(), ("attn.qkv.q", "attn.qkv.k", "attn.qkv.v", "attn.proj", "mlp.fc1", "mlp.fc2")
    own = backbone.model.state_dict()
    with torch.no_grad():
        for block in range(2):
            delta = {n: scale * state[f"blocks.{block}.{n}.lora.B"] @ state[f"blocks.{block}.{n}.lora.A"]
                     for n in names}  # fmt: skip
            own[f"blocks.{block}.attn.qkv.weight"] += torch.cat([delta[f"attn.qkv.{letter}"] for letter in "qkv"])
            for name in names[3:]:
                own[f"blocks.{block}.{name}.weight"] += delta[name]
    backbone.take_identity()
    tracker = TrackingModel(backbone, CROPS).eval()
    heads = {name: tensor for name, tensor in state.items() if name.startswith("head.")}
    tracker.parts.load_state_dict(tracker.parts.state_dict() | heads | {"embedding.types": state["token_type_embed"]})
    return tracker


def outputs(tracker):
    torch.manual_seed(7)
    z, x, mask = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 32, 32), torch.rand(2, 2, 2) < 0.5
    with torch.no_grad():
        return tracker(z, x, mask)


def close(one, other):
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-4)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "dinov2.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in base().model.state_dict().items()}, path)
    return str(path)


def loaded(state, tmp_path, weights="random", model="vit_small_patch14_dinov2", **more):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "small_224.bin")
    return load_published(tmp_path / "small_224.bin", 32, f"timm:{model}", weights, CROPS, **SMALL | more)


@pytest.mark.parametrize("scalars", [True, False])
def test_a_file_of_what_was_trained(scalars, weights, tmp_path):
    state = trained_tensors()
    if not scalars:
        state = {name: tensor for name, tensor in state.items() if name not in ("lora_alpha", "use_rslora")}
    tracker = loaded(state, tmp_path, weights)
    close(outputs(tracker), outputs(by_hand(state, 2.0 if scalars else 1.0)))


def test_rslora_has_its_own_scale(weights, tmp_path):
    state = trained_tensors() | {"use_rslora": torch.tensor(True)}
    close(outputs(loaded(state, tmp_path, weights)), outputs(by_hand(state, 8 / 4**0.5)))


def whole_file(state, positions):
    """The same as a file since 2025: base weights beside the factors."""
    full = dict(state)
    for name, tensor in base().model.state_dict().items():
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                full[name.replace(".qkv.", f".qkv.{letter}.linear.")] = part.clone()
        elif any(f".{linear}." in name for linear in ("proj", "fc1", "fc2")) and name.startswith("blocks"):
            full[name.replace(".weight", ".linear.weight").replace(".bias", ".linear.bias")] = tensor
        elif name not in ("cls_token", "pos_embed"):
            full[name] = tensor
    return full | {"pos_embed": positions}


def test_a_file_of_the_whole_model_needs_no_base(weights, tmp_path):
    state = trained_tensors()
    expected = by_hand(state, 2.0)
    whole = whole_file(state, expected.embedding.positions)
    close(outputs(loaded(whole, tmp_path)), outputs(expected))


def test_a_merged_file(weights, tmp_path):
    state = trained_tensors()
    expected = by_hand(state, 2.0)
    merged = {name: tensor for name, tensor in state.items() if "lora" not in name}
    merged |= {n: t for n, t in expected.backbone.model.state_dict().items() if n not in ("cls_token", "pos_embed")}
    tracker = loaded(merged | {"pos_embed": expected.embedding.positions}, tmp_path)
    close(outputs(tracker), outputs(expected))
    tracker.save(tmp_path / "artefact", {})
    close(outputs(TrackingModel.load(tmp_path / "artefact")), outputs(expected))


def test_a_whole_file_is_saved_and_loaded_again(weights, tmp_path):
    state = trained_tensors()
    expected = by_hand(state, 2.0)
    tracker = loaded(whole_file(state, expected.embedding.positions), tmp_path)
    tracker.save(tmp_path / "artefact", {})
    again = TrackingModel.load(tmp_path / "artefact")
    close(outputs(again), outputs(expected))
    assert again.identity == TrackingModel.load(tmp_path / "artefact").identity


def lacks(name):
    return lambda state: {key: tensor for key, tensor in state.items() if not key.startswith(name)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lacks("head.cls"), "it is no LoRAT"),
        (lacks("blocks.1"), "it lacks blocks"),
        (lambda state: state | {"blocks.0.attn.proj.lora.A": torch.zeros(4, 9)}, "blocks.0.attn.proj.lora.A"),
        (lambda state: state | {"blocks.7.attn.proj.lora.A": torch.zeros(4, 48)}, "blocks.7"),
        (lambda state: state | {"head.reg_mlp.layers.2.weight": torch.zeros(2, 48)}, "head.reg_mlp.layers.2.weight"),
        (lambda state: state | {"token_type_embed": torch.zeros(3, 96)}, "96 wide"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_a_line(change, words, weights, tmp_path):
    with pytest.raises(ArtefactError, match=words) as refused:
        loaded(change(trained_tensors()), tmp_path, weights)
    assert "\n" not in str(refused.value)


def test_a_size_that_lorat_does_not_have(tmp_path):
    save_file(trained_tensors(), tmp_path / "small.bin")
    with pytest.raises(UserError, match="search size 256: LoRAT has 224 and 378"):
        load_published(tmp_path / "small.bin", 256)
    with pytest.raises(UserError, match=r"missing.bin' does not exist"):
        load_published(tmp_path / "missing.bin", 224)
    (tmp_path / "noise.bin").write_bytes(b"\x80\x02" * 40)
    with pytest.raises(ArtefactError, match="damaged or no safetensors file"):
        load_published(tmp_path / "noise.bin", 224)


def test_the_giant_has_a_gated_mlp(tmp_path):
    giant = load_backbone("timm:vit_giant_patch14_dinov2", "random", **SMALL | {"mlp_ratio": 4.0})
    hidden = giant.model.blocks[0].mlp.fc1.out_features
    state = trained_tensors(hidden=hidden, names=SWIGLU)
    tracker = loaded(state, tmp_path, "random", "vit_giant_patch14_dinov2", mlp_ratio=4.0)
    mlp = tracker.backbone.get_base_model().model.blocks[1].mlp
    assert torch.equal(mlp.fc1.lora_A["default"].weight, state["blocks.1.mlp.w12.lora.A"])
    assert torch.equal(mlp.fc2.lora_B["default"].weight, state["blocks.1.mlp.w3.lora.B"])
    x = torch.randn(1, 5, 48)
    gate, value = F.linear(x, mlp.fc1.base_layer.weight + 2 * mlp.fc1.lora_B["default"].weight
                           @ mlp.fc1.lora_A["default"].weight, mlp.fc1.base_layer.bias).chunk(2, dim=-1)  # fmt: skip
    hidden_state = F.silu(gate) * value
    expected = F.linear(hidden_state, mlp.fc2.base_layer.weight + 2 * mlp.fc2.lora_B["default"].weight
                        @ mlp.fc2.lora_A["default"].weight, mlp.fc2.base_layer.bias)  # fmt: skip
    torch.testing.assert_close(mlp(x), expected, rtol=1e-4, atol=1e-4)
