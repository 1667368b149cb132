import peft
import pytest
import torch
from fixtures.models import moved
from torch import nn

import vision_lowrank as vl
from vision_lowrank.adapters.peft_method import peft_method
from vision_lowrank.adapters.tuner import tuner_layers
from vision_lowrank.analysis.intruders import intruders
from vision_lowrank.analysis.layers import PREFIX, analyse, fused_pairs, layer_pairs, paired_weights
from vision_lowrank.analysis.spectra import effective_rank, relative_norm
from vision_lowrank.errors import UserError

METHODS = {
    "lora": lambda: vl.LoraConfig(r=2),
    "block_lora": lambda: vl.BlockLoraConfig(r=2, blocks=2),
    "kasa": lambda: vl.KasaConfig(r=2),
    "loha": lambda: peft_method("LOHA", r=2),
    "dora": lambda: peft_method("DORA", r=2),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 24))


def attached(config):
    config.target_modules = {"0", "2"}
    return moved(peft.get_peft_model(net(), config))


def tiny(modules, **options):
    backbone = vl.load_backbone("tiny-clip", "random")
    return moved(vl.attach(backbone, vl.BlockLoraConfig(r=2, blocks=2), layers=[0], modules=modules, **options))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("merged", [False, True])
def test_a_pair_is_the_frozen_weight_and_what_merging_adds(method, merged):
    model = attached(METHODS[method]())
    plain = net()
    if merged:
        model.merge_adapter()
    pairs = {pair.name: pair for pair in layer_pairs(model)}
    if not merged:
        model.merge_adapter()
    assert list(pairs) == ["0", "2"]
    for name, pair in pairs.items():
        frozen = plain.get_submodule(name).weight
        tuned = model.get_submodule(PREFIX + name).get_base_layer().weight
        assert pair.weight.dtype == pair.delta.dtype == torch.float64
        assert pair.kind == name
        assert torch.allclose(pair.weight.float(), frozen, atol=1e-6)
        assert torch.allclose((pair.weight + pair.delta).float(), tuned, atol=1e-6)
        assert float(pair.delta.norm()) > 0.1


def test_kinds_are_towers_and_logical_names():
    model = tiny(("q", "fc1"))
    reports = list(analyse(layer_pairs(model), k=4))
    assert sorted(report.kind for report in reports) == ["text fc1", "text q", "vision fc1", "vision q"]
    pairs = {pair.name: pair for pair in layer_pairs(model)}
    for report in reports:
        weight, delta = pairs[report.name].weight, pairs[report.name].delta
        assert report.shape == weight.shape
        assert report.relative_norm == relative_norm(weight, delta)
        assert report.effective_rank == effective_rank(delta)
        assert torch.equal(report.found.indices, intruders(weight, delta, k=4).indices)
        assert torch.equal(report.similarities[:4], report.found.similarities)


def test_q_k_and_v_are_apart_and_together_on_request():
    model = tiny(("q", "v", "o"), towers=("vision",))
    single = {pair.name: pair for pair in layer_pairs(model)}
    (fused,) = fused_pairs(model)
    parent = fused.name.removesuffix(".qkv")
    assert sorted(single) == [f"{parent}.{part}" for part in ("out_proj", "q_proj", "v_proj")]
    q, v = single[f"{parent}.q_proj"], single[f"{parent}.v_proj"]
    parts, weights = fused.delta.chunk(3), fused.weight.chunk(3)
    assert torch.equal(parts[0], q.delta)
    assert torch.equal(parts[2], v.delta)
    assert not parts[1].any()
    assert torch.equal(weights[0], q.weight)
    attention = model.get_base_model().get_submodule(parent)
    assert torch.equal(weights[1].float(), attention.k_proj.weight)


def test_convolutions_are_flattened_and_embeddings_left_out():
    torch.manual_seed(0)
    host = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Embedding(9, 6))
    model = moved(peft.get_peft_model(host, peft.LoraConfig(r=2, target_modules=["0", "1"])))
    (pair,) = layer_pairs(model)
    assert pair.weight.shape == pair.delta.shape == (8, 48)
    assert torch.linalg.matrix_rank(pair.delta, rtol=1e-5) == 2
    frozen = pair.weight.reshape(8, 3, 4, 4)
    model.merge_adapter()
    tuned = model.get_submodule(PREFIX + "0").get_base_layer().weight
    assert torch.allclose((frozen + pair.delta.reshape(8, 3, 4, 4)).float(), tuned, atol=1e-6)


def test_two_models_are_compared_linear_by_linear_and_shared_weights_once():
    base, tuned = (nn.Sequential(nn.Embedding(5, 6), *net(), nn.Linear(20, 16)) for _ in range(2))
    for each in (base, tuned):
        each[4].weight = each[1].weight
    with torch.no_grad():
        tuned[1].weight[0] += 1
    pairs = list(paired_weights(base, tuned))
    assert [pair.name for pair in pairs] == ["1", "3"]
    assert pairs[0].delta.norm() == pytest.approx(20**0.5, rel=1e-5)
    assert not pairs[1].delta.any()
    with pytest.raises(UserError, match="no linear '3' of that shape"):
        list(paired_weights(base, nn.Sequential(*base[:3])))


def test_starts_that_changed_the_frozen_weight_need_the_original():
    plain = net()
    model = peft.get_peft_model(net(), peft_method("PISSA", r=2, target_modules=["0", "2"]))
    with pytest.raises(UserError, match="pissa changed the frozen weights"):
        list(layer_pairs(model))
    originals = {name: plain.get_submodule(name).weight.detach() for name in ("0", "2")}
    for pair in layer_pairs(model, originals=originals):
        assert torch.equal(pair.weight.float(), originals[pair.name])
        assert float(pair.delta.norm()) < 1e-5  # at its start PiSSA is the base
    with pytest.raises(UserError, match="no weight '2'"):
        list(layer_pairs(model, originals={"0": originals["0"]}))


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="Sequential has no adapter inside"):
        list(layer_pairs(net()))
    with pytest.raises(UserError, match="no adapter 'other'; it has default"):
        list(layer_pairs(attached(METHODS["lora"]()), "other"))
    model = attached(METHODS["lora"]())
    with torch.no_grad():
        model.get_submodule(PREFIX + "2").base_layer.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        list(analyse(layer_pairs(model)))
    mixture = vl.attach(vl.load_backbone("tiny-clip", "random"), vl.MixLoraConfig(r=2, experts=2), check=False)
    assert tuner_layers(mixture)
    with pytest.raises(UserError, match="routes each token"):
        list(layer_pairs(mixture))
