"""Adapters loaded for prediction, without PEFT: the same outputs bit for bit, the same refusals."""

import json
import shutil

import pytest
import torch
from fixtures.models import moved
from safetensors.torch import load_file, save_file
from torch import nn

import vision_lowrank as vl
from vision_lowrank.adapters.peft_method import peft_method
from vision_lowrank.attachment import folder as files
from vision_lowrank.attachment import record as names
from vision_lowrank.attachment.factored import has_factors, load_factored
from vision_lowrank.attachment.store import load, save
from vision_lowrank.backbones.adapted import adapted, without_adapter
from vision_lowrank.errors import ArtefactError, UserError
from vision_lowrank.kernels.factored import FactoredLinear
from vision_lowrank.registry import registry

FACTORED = {
    "lora": vl.LoraConfig(r=2, alpha=3),
    "block_lora": vl.BlockLoraConfig(r=4, blocks=2),
    "comp_lora": vl.CompLoraConfig(r=2),
    "comp_lora projector": vl.CompLoraConfig(r=2, form="projector"),
    "lora_xs": vl.LoraXsConfig(r=2),
    "slora": vl.SloraConfig(r=2),
    "sora": vl.SoraConfig(r=4),
    "lamda": vl.LamdaConfig(r=2),
    "loldu": vl.LolduConfig(r=2),
    "kasa": vl.KasaConfig(r=2),
}
OTHERS = {
    "kasa with dropout": vl.KasaConfig(r=2, dropout=0.1),
    "rand_lora": vl.RandLoraConfig(r=4),
    "mixlora": vl.MixLoraConfig(r=2),
    "lofit": vl.LofitConfig(heads=2),
    "kv_prefix": vl.KvPrefixConfig(length=2),
    "visual_prompt": vl.VisualPromptConfig(length=2),
    "dora": peft_method("DORA", r=2),
    "pissa": peft_method("PISSA", r=2),
    "biases": peft_method("LORA", r=2, bias="lora_only"),
    "several scales": peft_method("LORA", r=2, alpha_pattern={".*q_proj": 4.0}),
    "loha": peft_method("LOHA", r=2),
}


def backbone(name="tiny-clip"):
    torch.manual_seed(0)
    return vl.load_backbone(name, weights="random").eval()


def trained(config, name="tiny-clip", **options):
    return moved(vl.attach(backbone(name), config, **{"layers": "-2:", **options}))


def inputs(model):
    size = model.preprocess.size
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def embeddings(model):
    text = [model.encode_text(model.tokenizer(["a cat", "a red apple"]))] if "text" in model.towers else []
    return [model.encode_image(inputs(model)), *text]


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(embeddings(model), embeddings(other), strict=True))


@pytest.mark.parametrize("name", FACTORED)
def test_outputs_are_those_of_the_attached_model_bit_for_bit(name, tmp_path):
    model = trained(FACTORED[name], modules=("q", "v", "fc1"))
    folder = save(model, tmp_path / "adapter")
    assert (folder / names.FACTORS).exists() == (name != "lora")
    assert has_factors(folder)
    light = load_factored(folder, backbone())
    assert same(light, model)
    assert not adapted(light)
    assert not any(p.requires_grad for p in light.parameters())
    assert sum(isinstance(each, FactoredLinear) for each in light.modules()) == 12
    assert not any(torch.equal(a, b) for a, b in zip(embeddings(light), embeddings(backbone()), strict=True))


def test_an_offset_is_among_the_factors(tmp_path):
    model = trained(vl.LoraConfig(r=2), initializer=vl.Pissa())
    light = load_factored(save(model, tmp_path / "adapter"), backbone())
    assert same(light, model)
    assert next(each for each in light.modules() if isinstance(each, FactoredLinear)).A.shape[0] == 4


@pytest.mark.parametrize("kind", ["timm:vit_tiny_patch16_224", "timm:eva02_tiny_patch14_224"])
def test_other_libraries_too(kind, tmp_path):
    model = trained(vl.CompLoraConfig(r=2), kind, layers="-1:")
    assert same(load_factored(save(model, tmp_path / "adapter"), backbone(kind)), model)


@pytest.mark.parametrize("name", OTHERS)
def test_methods_without_such_factors_are_left_to_peft(name, tmp_path):
    towers = {"towers": ("vision",)} if name == "visual_prompt" else {}
    folder = save(trained(OTHERS[name], **towers), tmp_path / "adapter")
    assert not has_factors(folder)
    assert not (folder / names.FACTORS).exists()
    assert json.loads((folder / names.RECORD).read_text())["factors"] is None


@pytest.mark.parametrize("name", [part.name for part in vl.methods("adapter") if part.name != "peft"])
def test_every_registered_method_loads_for_prediction_as_it_was_saved(name, tmp_path):
    model = trained(registry.get("adapter", name).target(), towers=("vision",))
    folder = save(model, tmp_path / "adapter")
    light = vl.load_model(folder, backbone()).backbone
    assert adapted(light) != has_factors(folder)
    for one, other in zip(embeddings(light), embeddings(model), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 if adapted(light) else 0)


def test_a_backbone_takes_one_adapter(tmp_path):
    folder, base = save(trained(vl.LoraConfig(r=2)), tmp_path / "adapter"), backbone()
    load_factored(folder, base)
    with pytest.raises(UserError, match="already carries an adapter"):
        load_factored(folder, base)


def test_q_k_and_v_share_their_down_projection(tmp_path, monkeypatch):
    light = load_factored(save(trained(vl.BlockLoraConfig(r=4)), tmp_path / "adapter"), backbone())
    from vision_lowrank.kernels import layers

    together, original = [], layers.fused_linears
    monkeypatch.setattr(layers, "fused_linears", lambda x, b: together.append(len(b)) or original(x, b))
    light.encode_image(inputs(light))
    assert together == [3, 3]


def test_without_its_factors_an_adapter_is_one_for_peft_and_loads_as_before(tmp_path):
    model = trained(vl.BlockLoraConfig(r=4))
    folder = save(model, tmp_path / "adapter")
    (folder / names.FACTORS).unlink()
    assert not has_factors(folder)
    assert same(load(folder, backbone()), model)


def test_it_says_that_its_adapter_cannot_be_switched_off_merged_or_saved(tmp_path):
    light = load_factored(save(trained(vl.LoraConfig(r=2)), tmp_path / "adapter"), backbone())
    with pytest.raises(UserError, match="attach=True"):
        without_adapter(light)
    for refused in (vl.merge, vl.fuse_attention):
        with pytest.raises(UserError):
            refused(light)
    with pytest.raises(UserError, match="not a linear"):
        vl.attach(light, vl.LoraConfig(r=2))


def rewrite(folder, change):
    """Change a file of factors and keep its checksum right."""
    tensors = load_file(folder / names.FACTORS)
    change(tensors)
    save_file(tensors, folder / names.FACTORS)
    record = json.loads((folder / names.RECORD).read_text())
    record["factors"]["sha256"] = files.checksum(tensors)
    (folder / names.RECORD).write_text(json.dumps(record))


def stretch(tensors):
    tensors[sorted(tensors)[0]] = torch.zeros(2, 5)


def drop(tensors):
    del tensors[sorted(tensors)[0]]


def scale_all(tensors):
    for name in tensors:
        tensors[name] = tensors[name] * 1.5


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: rewrite(folder, stretch), "do not fit 'tiny-clip'"),
        (lambda folder: rewrite(folder, drop), "do not fit 'tiny-clip'"),
        (lambda folder: rewrite(folder, scale_all), "embedding of the probe is not what it was"),
        (lambda folder: truncate(folder / names.FACTORS), "factors.safetensors' is damaged"),
        (lambda folder: truncate(folder / names.TENSORS), "adapter_model.safetensors' is damaged"),
        (lambda folder: truncate(folder / files.CONFIG), "adapter_config.json' is damaged"),
        (lambda folder: shutil.copy(folder / names.TENSORS, folder / names.FACTORS), "its checksum differs"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_backbone_stays_as_it_was(damage, words, tmp_path):
    folder = save(trained(vl.BlockLoraConfig(r=4)), tmp_path / "adapter")
    damage(folder)
    base = backbone()
    with pytest.raises(ArtefactError) as error:
        load_factored(folder, base)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert base.factored is None
    assert not any(isinstance(each, FactoredLinear) for each in base.modules())


def test_another_base_is_refused(tmp_path):
    folder = save(trained(vl.BlockLoraConfig(r=4)), tmp_path / "adapter")
    torch.manual_seed(9)
    with pytest.raises(ArtefactError, match="was trained on tiny-clip"):
        load_factored(folder, vl.load_backbone("tiny-clip", weights="random"))


def test_a_bias_and_none_are_the_same_to_it():
    x, A, B = torch.randn(2, 5, 8), torch.randn(3, 8), torch.randn(6, 3)
    for bias in (True, False):
        linear = nn.Linear(8, 6, bias=bias)
        expected = linear(x) + 0.5 * (x @ A.T) @ B.T
        torch.testing.assert_close(FactoredLinear(linear, A, B, 0.5)(x), expected)
