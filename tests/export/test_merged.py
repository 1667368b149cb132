"""Merged weights, loaded by timm and open_clip in a process that never imports this package."""

import json
import subprocess
import sys

import pytest
import torch
from fixtures.models import moved
from safetensors import safe_open
from torch import nn

from vision_lowrank.adapters.kasa import KasaConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attention.split import SplitAttention, split_attention
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.backbones.tiny_clip import FOLDER
from vision_lowrank.errors import UserError
from vision_lowrank.export.merged import export_merged

LOADER = """
import json, sys
import open_clip, timm, torch
from safetensors.torch import load_file
folder, config = sys.argv[1:]
models = {"timm": timm.create_model("test_vit", num_classes=0), "clip": open_clip.CLIP(**json.load(open(config)))}
for name, model in models.items():
    model.load_state_dict(load_file(f"{folder}/{name}.safetensors"))
    pixels = torch.load(f"{folder}/{name}.pixels.pt", weights_only=True)
    with torch.no_grad():
        encode = model.encode_image if name == "clip" else model
        model.eval()
        torch.save(encode(pixels), f"{folder}/{name}.pt")
assert not any(name.startswith("vision_lowrank") for name in sys.modules)
"""


def adapted(name, config):
    torch.manual_seed(0)
    return moved(attach(load_backbone(name, "random"), config), amount=0.02)


def test_the_libraries_alone_load_the_files_and_compute_the_same(tmp_path):
    expected = {}
    for name, backbone in (("timm", "timm:test_vit"), ("clip", "tiny-clip")):
        model = adapted(backbone, KasaConfig(r=2))
        export_merged(model, tmp_path / f"{name}.safetensors")
        pixels = torch.randn(2, 3, model.preprocess.size, model.preprocess.size)
        torch.save(pixels, tmp_path / f"{name}.pixels.pt")
        with torch.no_grad():
            expected[name] = model.encode_image(pixels)
            with model.disable_adapter():
                assert not torch.allclose(model.encode_image(pixels), expected[name], atol=1e-2)
    (tmp_path / "config.json").write_text(json.dumps(json.loads((FOLDER / "config.json").read_text())["model_cfg"]))
    subprocess.run([sys.executable, "-c", LOADER, tmp_path, tmp_path / "config.json"], check=True)
    for name, output in expected.items():
        loaded = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        torch.testing.assert_close(loaded, output, rtol=1e-4, atol=1e-4)


def test_a_folder_gets_a_file_of_the_usual_name(tmp_path):
    model = adapted("timm:test_vit", LoraConfig(r=2))
    assert export_merged(model, tmp_path / "out") == tmp_path / "out" / "model.safetensors"
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_our_own_loader_takes_the_file_and_finds_the_fingerprint_in_its_header(tmp_path):
    model = adapted("timm:test_vit", LoraConfig(r=2))
    path = export_merged(model, tmp_path / "mine.safetensors")
    again = load_backbone("timm:test_vit", str(path)).eval()
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert (about["backbone"], about["fingerprint"]) == ("timm:test_vit", again.fingerprint)
    x = torch.randn(2, 3, model.preprocess.size, model.preprocess.size)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(x), model.encode_image(x), rtol=1e-4, atol=1e-4)


def test_a_backbone_whose_own_weights_were_trained_is_written_as_it_is(tmp_path):
    backbone = load_backbone("tiny-clip", "random")
    split_attention(backbone)
    moved(backbone, amount=0.02)
    path = export_merged(backbone, tmp_path)
    assert isinstance(backbone.model.visual.transformer.resblocks[0].attn, SplitAttention)
    again = load_backbone("tiny-clip", path).eval()
    with safe_open(path, "pt") as file:
        assert file.metadata()["fingerprint"] == again.fingerprint != backbone.fingerprint
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(x), backbone.encode_image(x), rtol=1e-4, atol=1e-4)


def test_nothing_is_left_where_the_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export_merged(adapted("timm:test_vit", LoraConfig(r=2)), tmp_path / "file")
    with pytest.raises(UserError, match="needs a model with adapters"):
        export_merged(nn.Linear(2, 2), tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
