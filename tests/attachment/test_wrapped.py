"""Compiled and wrapped models: unwrapped at the door, or refused with the remedy."""

import json

import pytest
import torch
from fixtures.models import moved
from torch import nn

from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attachment.merge import merge
from vision_lowrank.attachment.store import load, save
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import UserError
from vision_lowrank.export.lora import export_lora
from vision_lowrank.export.merged import export_merged
from vision_lowrank.targets.coverage import coverage


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_inside(model):
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.model.visual = compiled(inner.model.visual)
    return model


def compiled_block(model):
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    blocks = inner.model.visual.transformer.resblocks
    blocks[1] = compiled(blocks[1])
    return model


@pytest.fixture
def processes():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS = {
    "compiled": compiled,
    "compiled inside": compiled_inside,
    "a compiled block": compiled_block,
    "for processes": nn.parallel.DistributedDataParallel,
    "for devices": nn.DataParallel,
    "compiled for processes": lambda model: compiled(nn.parallel.DistributedDataParallel(model)),
}


def backbone():
    torch.manual_seed(0)
    return load_backbone("tiny-clip", weights="random").eval()


def pixels():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def contents(folder):
    """All files, without the outputs of the probe, in which compiled operations round differently."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    record = json.loads(files.pop("vision_lowrank.json"))
    return files, {key: value for key, value in record.items() if key != "probe"}


@pytest.mark.parametrize("config", [LoraConfig(r=2), BlockLoraConfig(r=2)], ids=["lora", "block_lora"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@torch.no_grad()
def test_everything_that_reads_a_model_finds_it_inside(wrapper, config, processes, tmp_path):
    model = moved(attach(backbone(), config, towers=("vision",), layers="-1:"))
    y = model.encode_image(pixels())
    plain = save(model, tmp_path / "plain")
    expected = export_lora(model, tmp_path / "lora").ranks
    with torch.enable_grad():
        wrapped = WRAPPERS[wrapper](model)
    save(wrapped, tmp_path / "wrapped")
    assert contents(tmp_path / "wrapped") == contents(plain)
    assert torch.equal(load(tmp_path / "wrapped", backbone()).encode_image(pixels()), y)
    assert not coverage(wrapped).dead
    assert export_lora(wrapped, tmp_path / "wrapped lora").ranks == expected
    torch.testing.assert_close(merge(wrapped).encode_image(pixels()), y, rtol=1e-4, atol=1e-4)
    again = load_backbone("tiny-clip", export_merged(wrapped, tmp_path)).eval()
    torch.testing.assert_close(again.encode_image(pixels()), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_adapters_come_before_compilation_and_wrapping(wrapper, processes, tmp_path):
    folder = save(attach(backbone(), LoraConfig(r=2)), tmp_path / "a")
    for take in (lambda model: attach(model, LoraConfig(r=2)), lambda model: load(folder, model)):
        with pytest.raises(UserError, match=r"attach or load first, then call torch\.compile"):
            take(WRAPPERS[wrapper](backbone()))


@pytest.mark.parametrize("situation", ["merge_adapter", "disable_adapter_layers"])
def test_coverage_of_adapters_that_do_not_work_says_why(situation):
    model = attach(backbone(), LoraConfig(r=2))
    getattr(model.base_model, situation)()
    with pytest.raises(UserError, match="merged or switched off"):
        coverage(model)
