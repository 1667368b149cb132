import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import ArtefactError, UserError

SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
ARCH = "timm:vit_tiny_patch16_224"


def hugging_face(kind=ViTModel, **options):
    """A small ViT whose tensors all count, in float64; its LayerNorm has timm's epsilon."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = ViTConfig(image_size=32, patch_size=16, layer_norm_eps=1e-6, **sizes, **options)
    model = kind(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + 0.1)
    return model


@pytest.fixture
def files(tmp_path):
    """A model of Hugging Face and the file that it saves."""
    model = hugging_face()
    model.save_pretrained(tmp_path)
    return model, tmp_path / "model.safetensors"


def exact(path, **options):
    """The backbone with the file's weights, in the file's precision."""
    return load_backbone(ARCH, path, **SMALL, **options).double().eval()


def test_a_file_of_hugging_face_gives_its_pooler_output(files):
    model, path = files
    pixels = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    save_file({name: tensor.float().contiguous() for name, tensor in load_file(path).items()}, path)
    with torch.no_grad():
        expected = model.float().double()(pixels)
        for attached in (False, True):
            backbone = exact(path, pooler=True)
            if attached:  # with attention split in three
                backbone = attach(backbone, LoraConfig(r=2), modules=("q", "v"), check=False).eval()
            torch.testing.assert_close(backbone.encode_image(pixels), expected.pooler_output)
        torch.testing.assert_close(backbone.image_tokens(pixels), expected.last_hidden_state[:, 1:])
        torch.testing.assert_close(exact(path).encode_image(pixels), expected.last_hidden_state[:, 0])


def test_a_classifier_of_hugging_face_has_no_pooler_and_is_read_without_its_last_layer(tmp_path):
    model = hugging_face(ViTForImageClassification, num_labels=5)
    model.float().save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.vit(pixels).last_hidden_state[:, 0]
        torch.testing.assert_close(
            load_backbone(ARCH, tmp_path / "model.safetensors", **SMALL).eval()(pixels), expected
        )
    with pytest.raises(ArtefactError, match=r"2 missing \(first 'head.dense.weight'\)"):
        exact(tmp_path / "model.safetensors", pooler=True)


def test_early_files_of_timm_carry_the_pooler_too(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=7).state_dict()
    state |= {"pre_logits.fc.weight": torch.randn(32, 32), "pre_logits.fc.bias": torch.randn(32)}
    save_file(state, tmp_path / "timm.safetensors")
    pooled, plain = (
        load_backbone(ARCH, tmp_path / "timm.safetensors", **SMALL, pooler=choice).eval() for choice in (True, False)
    )
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        linear = torch.nn.functional.linear(plain(pixels), state["pre_logits.fc.weight"], state["pre_logits.fc.bias"])
        torch.testing.assert_close(pooled(pixels), torch.tanh(linear))


def test_the_pooler_is_part_of_the_spec_and_of_the_fingerprint(files):
    _, path = files
    backbone, plain = load_backbone(ARCH, path, **SMALL, pooler=True), load_backbone(ARCH, path, **SMALL)
    again = load_backbone(**backbone.spec)
    assert backbone.spec["pooler"] is True
    assert "pooler" not in plain.spec
    assert again.fingerprint == backbone.fingerprint != plain.fingerprint
    assert backbone.embed_dim == plain.embed_dim == 32
    save_file(backbone.model.state_dict(), path)
    assert load_backbone(ARCH, path, **SMALL, pooler=True).fingerprint == backbone.fingerprint


def test_a_file_that_lacks_a_key_of_attention_is_named(files):
    _, path = files
    state = load_file(path)
    del state["encoder.layer.1.attention.attention.value.bias"]
    save_file(state, path)
    with pytest.raises(ArtefactError, match=r"model.safetensors' cannot be loaded: .*layer.1.*value.bias"):
        exact(path)


@pytest.mark.parametrize(
    ("name", "weights", "options", "message"),
    [
        ("timm:resnet10t", "random", {}, "'resnet10t' cannot have a pooler"),
        (ARCH, "random", {"global_pool": "avg", "fc_norm": False}, "cannot have a pooler"),
        (ARCH, "augreg_in21k", {}, "without the pooler's weights: give a file"),
        (ARCH, "pretrained", {}, "without the pooler's weights: give a file"),
    ],
)
def test_a_pooler_without_a_place_or_weights_is_refused(name, weights, options, message):
    with pytest.raises(UserError, match=message):
        load_backbone(name, weights, pooler=True, **options)
