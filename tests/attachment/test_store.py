import json
import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from vision_lowrank import files as folders
from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.comp_lora import CompLoraConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.peft_method import peft_method
from vision_lowrank.attachment import store
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attachment.factored import load_factored
from vision_lowrank.attachment.store import load, save
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import ArtefactError, UserError
from vision_lowrank.targets.coverage import coverage


def backbone(seed=0):
    torch.manual_seed(seed)
    return load_backbone("tiny-clip", weights="random").eval()


def trained(config=None, seed=0, **where):
    model = attach(backbone(seed), config or BlockLoraConfig(r=2), **{"modules": ("q",), "layers": ":1", **where})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def pixels():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("config", "tolerance"),
    [(BlockLoraConfig(r=2), 0.0), (CompLoraConfig(r=2), 1e-5), (peft_method("VERA", r=4), 0.0)],
    ids=["block_lora", "comp_lora", "VERA"],
)
def test_load_gives_the_saved_model_back(config, tolerance, tmp_path):
    model = trained(config)
    save(model, tmp_path / "adapter")
    again = load(tmp_path / "adapter", backbone())
    assert model.attachments == again.attachments
    assert not [p for p in again.parameters() if p.requires_grad]
    with torch.no_grad():
        torch.testing.assert_close(
            again.encode_image(pixels()), model.encode_image(pixels()), rtol=tolerance, atol=tolerance
        )
        tokens = model.tokenizer(["a cat"])
        torch.testing.assert_close(again.encode_text(tokens), model.encode_text(tokens), rtol=tolerance, atol=tolerance)


def test_a_process_that_has_not_named_the_method_can_load_it(tmp_path):
    save(trained(), tmp_path / "out")
    code = "import sys; from vision_lowrank.attachment.store import read_config; from pathlib import Path; "
    code += "print(read_config(Path(sys.argv[1])).method)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "block_lora", done.stderr


def test_a_trainable_load_goes_on_training(tmp_path):
    model = trained()
    save(model, tmp_path / "adapter")
    again = load(tmp_path / "adapter", backbone(), trainable=True)
    names = [name for name, p in again.named_parameters() if p.requires_grad]
    assert names == [name for name, p in model.named_parameters() if p.requires_grad]


def test_saving_changes_nothing_in_the_model(tmp_path):
    model = trained().train()
    flags = [(p.requires_grad, p.detach().clone()) for p in model.parameters()]
    save(model, tmp_path / "adapter")
    assert all(module.training for module in model.modules())
    assert all(
        p.requires_grad == flag and torch.equal(p, value)
        for p, (flag, value) in zip(model.parameters(), flags, strict=True)
    )


def test_two_adapters_are_saved_and_loaded_by_name(tmp_path):
    model = trained()
    attach(model, BlockLoraConfig(r=4), modules=("v",), adapter_name="second")
    for name in ("default", "second"):
        save(model, tmp_path / name, name)
    again = load(tmp_path / "second", load(tmp_path / "default", backbone()), adapter_name="second")
    assert set(again.attachments) == {"default", "second"}
    model.set_adapter("default")
    again.set_adapter("default")
    with torch.no_grad():
        assert torch.equal(again.encode_image(pixels()), model.encode_image(pixels()))


def test_another_base_is_refused_with_both_names(tmp_path):
    save(trained(), tmp_path / "adapter")
    other = backbone(seed=9)
    with pytest.raises(ArtefactError) as error:
        load(tmp_path / "adapter", other)
    assert other.fingerprint in str(error.value)
    assert backbone().fingerprint in str(error.value)
    assert not any("base_layer" in name for name, _ in other.named_modules())


def rewrite(path, change):
    """Change the tensors of a saved adapter and keep its checksum right."""
    tensors = load_file(path / store.TENSORS)
    change(tensors)
    save_file(tensors, path / store.TENSORS)
    record = json.loads((path / store.RECORD).read_text())
    record["sha256"] = store.checksum(tensors)
    (path / store.RECORD).write_text(json.dumps(record))


def drop_one(tensors):
    tensors.pop(sorted(tensors)[0])


def add_one(tensors):
    tensors["base_model.model.stray.weight_update.A"] = torch.zeros(1)


def grow_one(tensors):
    tensors[sorted(tensors)[0]] = torch.zeros(3, 3)


def scale_all(tensors):
    for name in tensors:
        tensors[name] = tensors[name] * 1.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_one, "lacks 1 tensors, the first is"),
        (add_one, "unexpected 1 tensors, the first is 'base_model.model.stray"),
        (grow_one, "has the shape (3, 3) instead of"),
        (scale_all, "embedding of the probe is not what it was"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_the_backbone_stays_as_it_was(change, words, tmp_path):
    save(trained(), tmp_path / "adapter")
    rewrite(tmp_path / "adapter", change)
    base = backbone()
    with torch.no_grad():
        before = base.encode_image(pixels())
    with pytest.raises(ArtefactError) as error:
        load(tmp_path / "adapter", base)
    assert words in str(error.value)
    assert not any("base_layer" in name for name, _ in base.named_modules())
    with torch.no_grad():
        torch.testing.assert_close(base.encode_image(pixels()), before, rtol=1e-5, atol=1e-5)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (store.TENSORS, truncate, "is damaged"),
        (store.TENSORS, os.remove, "is missing"),
        (store.CONFIG, truncate, "is damaged"),
        (store.CONFIG, os.remove, "is missing"),
        (store.CONFIG, lambda path: path.write_text('{"peft_type": "BLOCK_LROA"}'), "Did you mean 'BLOCK_LORA'?"),
        (store.RECORD, truncate, "is damaged"),
        (store.RECORD, os.remove, "peft.PeftModel.from_pretrained"),
        (store.RECORD, lambda path: path.write_text("[]"), "no JSON object"),
        (store.RECORD, lambda path: path.write_text('{"format": 99}'), "format 99"),
        (store.RECORD, lambda path: path.write_text('{"format": 1}'), "is damaged"),
    ],
)
def test_damaged_folders_give_one_line(name, damage, words, tmp_path):
    save(trained(), tmp_path / "adapter")
    damage(tmp_path / "adapter" / name)
    with pytest.raises(ArtefactError) as error:
        load(tmp_path / "adapter", backbone())
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_flipped_bit_is_noticed(tmp_path):
    save(trained(), tmp_path / "adapter")
    path = tmp_path / "adapter" / store.TENSORS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match="checksum"):
        load(tmp_path / "adapter", backbone())


def test_an_interrupted_save_keeps_what_was_there(tmp_path, monkeypatch):
    model = trained()
    folder = save(model, tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(folders, "flush", fail)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1)
    with pytest.raises(OSError, match="no space"):
        save(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_saving_again_replaces_the_adapter_and_keeps_other_files(tmp_path):
    model = trained()
    folder = save(model, tmp_path / "adapter")
    (folder / "notes.txt").write_text("mine")
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(0.1)
    save(model, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    load(folder, backbone())
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds other things"):
        save(trained(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_folder_says_what_it_is_and_holds_no_machine_paths(tmp_path):
    model = trained()
    folder = save(model, tmp_path / "adapter")
    card = (folder / store.CARD).read_text()
    for words in ("BLOCK_LORA", "tiny-clip", model.fingerprint, "vl.load("):
        assert words in card
    assert not any(str(tmp_path) in path.read_text(errors="ignore") for path in folder.iterdir())
    (tmp_path / "ordinary").mkdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def test_same_adapter_same_bytes(tmp_path):
    for name in ("one", "two"):
        save(trained(), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_model_that_attach_did_not_make_is_refused(tmp_path):
    import peft
    from torch import nn

    model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), BlockLoraConfig(target_modules=["0"]))
    with pytest.raises(UserError, match="save_pretrained"):
        save(model, tmp_path / "adapter")


def without_tokenizer():
    """A backbone whose tokenizer cannot be had."""

    def tokenize(texts):
        raise UserError("the tokenizer could not be downloaded")

    base = backbone()
    base.tokenizer = tokenize
    return base


def test_a_vision_adapter_needs_no_tokenizer(tmp_path):
    model = attach(without_tokenizer(), LoraConfig(r=2), towers=("vision",))
    assert not coverage(model).dead
    folder = save(model, tmp_path / "a")
    load(folder, without_tokenizer())
    load_factored(folder, without_tokenizer())
    with pytest.raises(UserError, match="tokenizer"):
        attach(without_tokenizer(), LoraConfig(r=2), towers=("vision", "text"))


def test_adapters_of_different_towers_are_saved_and_loaded_apart_and_together(tmp_path):
    model = trained(BlockLoraConfig(r=2), towers=("vision",))
    attach(model, BlockLoraConfig(r=4), towers=("text",), adapter_name="text")
    folders = [save(model, tmp_path / name, name) for name in ("default", "text")]
    for first, second in (folders, folders[::-1]):
        load(second, load(first, backbone()), "other")
