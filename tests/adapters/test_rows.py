"""One adapter for each row of a batch: ``model(x, adapter_names=[…])``."""

import pytest
import torch
from fixtures.models import moved
from peft import get_peft_model

import vision_lowrank as vl
from vision_lowrank.adapters.peft_method import peft_method
from vision_lowrank.errors import UserError

FACTORED = {
    "lora": vl.LoraConfig(r=2),
    "block_lora": vl.BlockLoraConfig(r=2),
    "comp_lora": vl.CompLoraConfig(r=2),
    "kasa": vl.KasaConfig(r=2),
}


def backbone():
    torch.manual_seed(0)
    return vl.load_backbone("tiny-clip", weights="random").eval()


def pixels():
    return torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def two(config):
    model = moved(vl.attach(backbone(), config, towers=("vision",), modules=("q", "fc1")))
    return moved(vl.attach(model, config, towers=("vision",), modules=("v", "fc1"), adapter_name="b"), seed=4)


@pytest.mark.parametrize("method", FACTORED)
@torch.no_grad()
def test_every_row_is_that_of_its_adapter_alone(method):
    model, x = two(FACTORED[method]), pixels()
    expected = {"__base__": backbone()(x)}
    for name in ("default", "b"):
        model.set_adapter(name)
        expected[name] = model(x)
    names = ["b", "__base__", "default", "b"]
    rows = model(x, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(rows[row], expected[name][row], rtol=1e-4, atol=1e-4)
    assert torch.equal(model(x), expected["b"])


@pytest.mark.parametrize(("names", "words"), [
    (["b", "defualt", "b", "b"], "no 'defualt'.* Did you mean 'default'"),
    (["b", "b"], "2 names for 4 rows"),
])  # fmt: skip
def test_names_that_do_not_fit_are_refused_and_leave_nothing_behind(names, words):
    model, x = two(vl.BlockLoraConfig(r=2)), pixels()
    before = model(x)
    with pytest.raises(UserError, match=words):
        model(x, adapter_names=names)
    assert torch.equal(model(x), before)


def test_rows_are_for_prediction_with_adapters_that_are_not_merged():
    model, x = two(vl.BlockLoraConfig(r=2)), pixels()
    model.merge_adapter()
    with pytest.raises(UserError, match="unmerge them first"):
        model(x, adapter_names=["b"] * 4)
    with pytest.raises(UserError, match=r"model\.eval\(\)"):
        model.train()(x, adapter_names=["b"] * 4)


@pytest.mark.parametrize("config", [
    vl.LofitConfig(heads=2), vl.MixLoraConfig(r=2), vl.VisualPromptConfig(), vl.RandLoraConfig(r=8),
    peft_method("LOHA", r=2),
], ids=lambda config: type(config).__name__)  # fmt: skip
def test_methods_without_such_an_update_refuse(config):
    model = vl.attach(backbone(), config, towers=("vision",)).eval()
    with pytest.raises(UserError, match="adapter_names"):
        model(pixels(), adapter_names=["default"] * 4)


def test_narrow_adapter_tensors_are_refused():
    base = vl.split_attention(backbone().to(torch.bfloat16))
    config = vl.BlockLoraConfig(r=2, target_modules=["q_proj"])
    with pytest.raises(UserError, match="float32 or wider"):
        get_peft_model(base, config, autocast_adapter_dtype=False)
    assert not any("weight_update" in name for name, _ in base.named_modules())
    wide = get_peft_model(base, config)
    assert {p.dtype for p in wide.parameters() if p.requires_grad} == {torch.float32}
