"""The shipped ViT, an ordinary timm checkpoint folder: its architecture, other sizes, other weights, files amiss."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import save_file

from vision_lowrank.backbones import tiny_vit
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import ArtefactError, UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the shipped folder without weights, in its place."""
    shutil.copy(tiny_vit.FOLDER / "config.json", tmp_path)
    monkeypatch.setattr(tiny_vit, "FOLDER", tmp_path)
    return tmp_path


def random(**options):
    torch.manual_seed(0)
    return load_backbone("tiny-vit", "random", **options).eval()


def test_the_architecture_is_the_one_that_config_json_says():
    backbone = random()
    trunk = backbone.trunk
    of_a_block = 12 * 160**2 + 13 * 160
    assert sum(p.numel() for p in backbone.parameters()) == (3 * 64 + 1 + 144 + 2) * 160 + 6 * of_a_block
    assert (tuple(trunk.layout.grid), trunk.layout.prefix, trunk.layout.width) == ((12, 12), 0, 160)
    assert len(trunk.blocks) == 6
    assert trunk.patch == (8, 8)
    assert (backbone.preprocess.size, backbone.embed_dim) == (96, 160)
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(pixels), backbone.image_tokens(pixels).mean(dim=1))


def test_random_weights_are_drawn_and_no_file_is_read(folder):
    one, other = random(), random()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(load_backbone("tiny-vit", "random").parameters()))


def test_it_is_a_folder_that_timm_reads(folder):
    """Weights of half precision on disk; ours and timm's own loader compute the same."""
    state = {name: tensor.half() for name, tensor in random().model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours = load_backbone("tiny-vit").eval()
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(theirs(pixels), ours.encode_image(pixels))
    assert next(ours.parameters()).dtype == torch.float32
    assert tuple(theirs.pretrained_cfg["mean"]) == tuple(ours.preprocess.mean)


def test_another_size_resamples_positions():
    backbone = random(image_size=128)
    assert tuple(backbone.trunk.layout.grid) == (16, 16)
    assert backbone.encode_image(torch.randn(1, 3, 128, 128)).shape == (1, 160)
    with pytest.raises(UserError, match="100"):
        random(image_size=100)


def test_missing_weights_are_one_line_with_the_remedy(folder):
    with pytest.raises(UserError) as caught:
        load_backbone("tiny-vit")
    said = str(caught.value)
    assert "\n" not in said
    assert str(folder / "model.safetensors") in said
    assert "random" in said


def test_weights_of_another_model_are_refused(folder):
    save_file({"blocks.0.norm1.weight": torch.ones(160)}, folder / "model.safetensors")
    with pytest.raises(ArtefactError, match="does not fit the model"):
        load_backbone("tiny-vit")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ArtefactError, match=r"model.safetensors"):
        load_backbone("tiny-vit")


def test_there_is_one_only():
    with pytest.raises(UserError, match="there is only one, named 'tiny-vit'"):
        load_backbone("tiny-vit:large", "random")


def test_its_card_of_timm_is_complete():
    about = json.loads((tiny_vit.FOLDER / "config.json").read_text())
    assert about["num_features"] == about["model_args"]["embed_dim"]
    assert about["pretrained_cfg"]["input_size"] == [3, 96, 96]
