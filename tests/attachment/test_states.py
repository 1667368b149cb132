"""Which adapters act, what is merged and what trains: whoever looks puts back exactly what was there."""

import copy
import io
import json

import pytest
import torch
from fixtures.models import moved
from torch import nn

from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.lofit import LofitConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.peft_method import peft_method
from vision_lowrank.adapters.rand_lora import RandLoraConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attachment.merge import merge
from vision_lowrank.attachment.store import load, probe, save
from vision_lowrank.attention.split import split_attention
from vision_lowrank.backbones.adapted import without_adapter
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import ArtefactError, UserError
from vision_lowrank.targets.coverage import coverage
from vision_lowrank.tasks.saved import load_model

METHODS = {
    "lora": lambda: LoraConfig(r=2),
    "rand_lora": lambda: RandLoraConfig(r=8),
    "block_lora": lambda: BlockLoraConfig(r=4),
    "DORA": lambda: peft_method("DORA", r=2),
    "LOHA": lambda: peft_method("LOHA", r=2),
    "OFT": lambda: peft_method("OFT", oft_block_size=8, r=0),
    "lofit": lambda: LofitConfig(heads=2),
}


def backbone(seed=0):
    torch.manual_seed(seed)
    return load_backbone("tiny-clip", weights="random").eval()


def pixels():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def output(model):
    return model.encode_image(pixels())


def trained(config, base=None, **where):
    return moved(attach(base or backbone(), config, towers=("vision",), layers="-1:", **where))


def two_adapters():
    model = trained(BlockLoraConfig(r=2), adapter_name="one")
    return moved(attach(model, BlockLoraConfig(r=4), towers=("vision",), modules=("o",), adapter_name="two"), seed=3)


def state(model):
    """All that could be disturbed, by place."""
    places = {
        name: (part.disable_adapters, list(part.active_adapters), list(part.merged_adapters))
        for name, part in model.named_modules()
        if hasattr(part, "merged_adapters") and hasattr(part, "_active_adapter")
    }
    top = (model.active_adapters, model.base_model.active_adapter, model._adapters_disabled)
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return top, places, modes, flags, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(now, before):
    assert now[:-1] == before[:-1]
    assert all(torch.equal(tensor, before[-1][name]) for name, tensor in now[-1].items())


# --- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_unmerging_gives_the_weights_back_bit_for_bit(method):
    model = trained(METHODS[method]())
    before, y = state(model), output(model)
    model.merge_adapter()
    torch.testing.assert_close(output(model), y, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert_same(state(model), before)
    assert torch.equal(output(model), y)


def test_a_copy_and_a_file_of_a_merged_model_unmerge_as_exactly():
    model = trained(RandLoraConfig(r=8))
    y = output(model)
    model.merge_adapter()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        twin.unmerge_adapter()
        assert torch.equal(output(twin), y)


def tie(kind, model, linear):
    """Let another place of `model` compute with the weight of `linear`."""
    twin = nn.Linear(linear.in_features, linear.out_features)
    if kind == "the same memory":
        twin.weight = nn.Parameter(linear.weight.data)
    elif kind == "an embedding":
        twin = nn.Embedding(*linear.weight.shape)
        twin.weight = linear.weight
    elif kind == "the same module":
        twin = linear
    else:
        twin.weight = linear.weight
    model.extra = twin


@pytest.mark.parametrize("kind", ["another linear", "an embedding", "the same module", "the same memory"])
@pytest.mark.parametrize("method", ["lora", "block_lora", "rand_lora"])
def test_a_weight_that_others_use_is_not_merged_into(method, kind):
    base = backbone()
    block = base.towers["vision"].blocks[-1]
    tie(kind, base, base.get_submodule(f"{block}.mlp.c_fc"))
    model = trained(METHODS[method](), base, modules=("fc1",))
    before = state(model)
    for attempt in (lambda: merge(model, in_place=True), model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UserError, match="shares its weight with"):
            attempt()
    assert_same(state(model), before)


def test_a_block_that_runs_twice_is_merged_once():
    base = backbone()
    blocks = base.model.visual.transformer.resblocks
    blocks[0] = blocks[1]
    model = trained(LoraConfig(r=2), base)
    y = output(model)
    torch.testing.assert_close(output(merge(model)), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["RANDLORA", "VERA", "PVERA"])
def test_a_second_adapter_of_another_rank_leaves_the_first_as_it_was(method):
    model = trained(peft_method(method, r=4))
    y = output(model)
    alone = moved(attach(backbone(), peft_method(method, r=16), towers=("vision",), layers="-1:"), seed=5)
    attach(model, peft_method(method, r=16), towers=("vision",), layers="-1:", adapter_name="two")
    moved(model, seed=5)
    torch.testing.assert_close(output(model), output(alone))
    model.set_adapter("default")
    assert torch.equal(output(model), y)


def test_adapters_that_change_the_frozen_weights_stand_alone():
    model = trained(peft_method("PISSA", r=2))
    before = state(model)
    with pytest.raises(UserError, match="pissa changes the frozen weights"):
        attach(model, peft_method("RSLORA", r=2), adapter_name="two")
    assert_same(state(model), before)


ALTERING = {
    "PISSA": {"r": 2}, "OLORA": {"r": 2}, "KASA": {"r": 2}, "OSF": {},
    "LORA": {"r": 2, "init_lora_weights": "olora"},
}  # fmt: skip


@pytest.mark.parametrize("method", ALTERING)
def test_an_adapter_that_changes_random_weights_is_loaded_again(method, tmp_path):
    model = trained(peft_method(method, **ALTERING[method]))
    save(model, tmp_path / "one")
    again = load_model(tmp_path / "one", attach=True).backbone
    assert torch.equal(output(again), output(model))
    save(again, tmp_path / "two")
    assert torch.equal(output(load_model(tmp_path / "two").backbone), output(model))


def test_a_start_that_no_load_can_repeat_is_refused():
    with pytest.raises(UserError, match="use pissa, which computes it exactly"):
        trained(peft_method("LORA", r=2, init_lora_weights="pissa_niter_4"))


@pytest.mark.parametrize("method", ALTERING)
def test_what_is_refused_leaves_the_frozen_weights_as_they_were(method, tmp_path):
    base = backbone()
    save(trained(peft_method(method, **ALTERING[method])), tmp_path)
    record = json.loads((tmp_path / "vision_lowrank.json").read_text(encoding="utf-8"))
    for name, values in record["probe"].items():
        record["probe"][name] = [value + 1 for value in values]
    (tmp_path / "vision_lowrank.json").write_text(json.dumps(record), encoding="utf-8")
    split_attention(base)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with pytest.raises(ArtefactError, match="not what it was at save"):
        load(tmp_path, base)
    assert base.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


# --- looking ---------------------------------------------------------------------------------------------------------

SITUATIONS = {
    "two active": lambda model: model.base_model.set_adapter(["one", "two"]),
    "switched off": lambda model: model.base_model.disable_adapter_layers(),
    "the other active": lambda model: model.set_adapter("two"),
    "merged": lambda model: model.merge_adapter(["two", "one"]),
    "frozen": lambda model: model.requires_grad_(False),
    "in training": lambda model: model.train(),
    "partly in training": lambda model: model.base_model.model.model.visual.train(),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_saving_gives_the_same_adapter_in_any_situation_and_changes_nothing(situation, tmp_path):
    model = two_adapters()
    model.set_adapter("one")
    y = output(model)
    SITUATIONS[situation](model)
    before = state(model)
    save(model, tmp_path / "one", "one")
    assert_same(state(model), before)
    assert torch.equal(output(load(tmp_path / "one", backbone())), y)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_computes_without_adapters_puts_everything_back(situation):
    plain, model = output(backbone()), two_adapters()
    SITUATIONS[situation](model)
    before = state(model)
    with without_adapter(model):
        torch.testing.assert_close(output(model), plain, rtol=1e-5, atol=1e-5)
        probe(model, "one")
    assert_same(state(model), before)


@pytest.mark.parametrize("situation", [name for name in SITUATIONS if name != "merged"])
def test_an_attach_or_load_that_fails_puts_everything_back(situation, tmp_path):
    other = save(trained(BlockLoraConfig(r=2), backbone(seed=1)), tmp_path / "other")
    model = two_adapters()
    SITUATIONS[situation](model)
    before = state(model)
    with pytest.raises(UserError):
        attach(model, BlockLoraConfig(r=4000), adapter_name="three")
    with pytest.raises(ArtefactError):
        load(other, model, "three")
    assert_same(state(model), before)


def test_a_backbone_trains_and_stays_in_the_modes_it_had_where_attach_fails():
    base = backbone().train()
    base.model.visual.eval()
    attach(base, LoraConfig(r=2)).unload()  # attention is split from here on
    base.requires_grad_(True)
    modes = {name: module.training for name, module in base.named_modules()}
    with pytest.raises(UserError):
        attach(base, BlockLoraConfig(r=4000))
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert {name: module.training for name, module in base.named_modules()} == modes


def test_a_second_adapter_that_is_loaded_to_predict_is_frozen(tmp_path):
    save(trained(BlockLoraConfig(r=2)), tmp_path / "a")
    model = load(tmp_path / "a", backbone())
    load(tmp_path / "a", model, "again")
    assert not any(parameter.requires_grad for parameter in model.parameters())


# --- modes of what is new --------------------------------------------------------------------------------------------

WITH_DROPOUT = {
    "lora": lambda: LoraConfig(r=2, dropout=0.5),
    "block_lora": lambda: BlockLoraConfig(r=2, dropout=0.5),
    "rand_lora": lambda: RandLoraConfig(r=8, dropout=0.5),
    "LOHA": lambda: peft_method("LOHA", r=2, module_dropout=0.5),
    "DORA": lambda: peft_method("DORA", r=2, lora_dropout=0.5),
}


@pytest.mark.parametrize("method", WITH_DROPOUT)
def test_an_adapter_has_the_mode_of_what_it_adapts(method):
    model = attach(backbone(), WITH_DROPOUT[method](), towers=("vision",))
    assert not any(module.training for module in model.modules())
    model.train()
    attach(model, WITH_DROPOUT[method](), towers=("vision",), adapter_name="two")
    assert all(module.training for module in model.modules())
    model.base_model.model.model.visual.eval()
    attach(model, WITH_DROPOUT[method](), towers=("vision", "text"), adapter_name="three")
    three = {name: module.training for name, module in model.named_modules() if ".three" in name}
    assert three or method == "LOHA"  # whose layers hold no modules of an adapter's own
    assert all(mode == ("visual" not in name) for name, mode in three.items())


AMBIENT = {"autocast": lambda: torch.autocast("cpu", torch.bfloat16), "inference mode": torch.inference_mode}


@pytest.mark.parametrize("ambient", AMBIENT)
def test_what_the_caller_has_on_changes_neither_what_is_saved_nor_what_is_loaded(ambient, tmp_path):
    save(trained(BlockLoraConfig(r=2)), tmp_path / "plain")
    with AMBIENT[ambient]():
        model = trained(BlockLoraConfig(r=2))
        coverage(model)
        save(model, tmp_path / "inside")
        loaded = load(tmp_path / "plain", backbone(), trainable=True)
    record = [json.loads((tmp_path / name / "vision_lowrank.json").read_text()) for name in ("plain", "inside")]
    assert record[0] == record[1]
    for each in (model, loaded):
        each.encode_image(pixels()).sum().backward()
        assert any(p.grad is not None and p.grad.any() for p in each.parameters())
