import gzip
import json
import re
from functools import partial
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attachment.store import load, save
from vision_lowrank.attention.split import split_attention
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.backbones.open_clip import wrap_open_clip
from vision_lowrank.backbones.tiny_clip import FOLDER, build_tiny_clip
from vision_lowrank.errors import ArtefactError, UserError
from vision_lowrank.identity import fingerprint
from vision_lowrank.targets.coverage import coverage
from vision_lowrank.targets.select import select
from vision_lowrank.tasks.classification.classifier import ImageClassifier

CONFIG = json.loads((FOLDER / "config.json").read_text())
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-clip", weights="random").eval()


def small_open_clip(**overrides):
    """An architecture of open_clip shrunk to test size: options replace whole sections of the library's config."""
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return load_backbone(
        "open_clip:ViT-B-32", **({"weights": "random", "vision_cfg": vision, "text_cfg": text} | overrides)
    )


def test_tiny_clip_answers_the_protocol(tiny):
    tokens = tiny.tokenizer(["a red apple", "a photo of a cat."])
    pixels = torch.stack([tiny.transform(Image.new("RGB", (64, 40), color)) for color in ("red", "blue")])
    assert pixels.shape == (2, 3, 48, 48)
    assert tokens.shape == (2, 20)
    assert tiny.encode_image(pixels).shape == tiny.encode_text(tokens).shape == (2, tiny.embed_dim) == (2, 192)
    assert tiny.image_tokens(pixels).shape == (2, 36, 192)
    assert torch.equal(tiny(pixels), tiny.encode_image(pixels))
    torch.testing.assert_close(tiny.logit_scale, torch.tensor(1 / 0.07))
    assert {name: len(tower.blocks) for name, tower in tiny.towers.items()} == {"vision": 6, "text": 4}
    assert sum(p.numel() for p in tiny.parameters()) == 3_829_249


def test_image_tokens_pool_to_the_class_embedding_only_through_the_projection(tiny):
    visual = tiny.model.visual
    pixels = torch.randn(1, 3, 48, 48)
    hidden = visual.ln_post(visual.transformer(visual._embeds(pixels)))
    torch.testing.assert_close(tiny.image_tokens(pixels), hidden[:, 1:])
    torch.testing.assert_close(tiny.encode_image(pixels), hidden[:, 0] @ visual.proj)


def test_the_vocabulary_is_read_whole_and_spells_what_it_read(tiny):
    merges = gzip.decompress((FOLDER / "bpe.txt.gz").read_bytes()).decode().split("\n")[1:]
    assert len(merges) == len(set(merges)) == 1500
    assert tiny.tokenizer.vocab_size == 512 + 1500 + 2 == CONFIG["model_cfg"]["text_cfg"]["vocab_size"]
    text = "a photo of a grinning face with big eyes ."
    assert tiny.tokenizer.decode(tiny.tokenizer.encode(text)) == text + " "
    assert len(tiny.tokenizer.encode("a photo of an emoji sticker")) == 6
    ids = tiny.tokenizer(["cat", "dog " * 40])
    assert ids.argmax(-1).tolist() == [2, 19]
    assert ids.max() == tiny.tokenizer.vocab_size - 1


def test_random_weights_come_from_the_global_generator():
    torch.manual_seed(3)
    one = load_backbone("tiny-clip", weights="random")
    other = load_backbone("tiny-clip", weights="random")
    torch.manual_seed(3)
    again = load_backbone("tiny-clip", weights="random")
    assert one.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("kind", [Path, str])
def test_what_was_trained_on_a_file_of_weights_is_saved_and_loads(kind, tiny_weights, tmp_path):
    backbone = load_backbone("tiny-clip", weights=kind(tiny_weights))
    assert backbone.spec == {"name": "tiny-clip", "weights": str(tiny_weights)}
    model = attach(backbone, LoraConfig(r=2), layers=[0])
    save(model, tmp_path / "adapter")
    load(tmp_path / "adapter", load_backbone("tiny-clip", weights=kind(tiny_weights)))
    ImageClassifier(model, "linear", ["a", "b"], ["a {}."]).save(tmp_path / "artefact", {})
    assert ImageClassifier.load(tmp_path / "artefact").backbone.weights == str(tiny_weights)


@pytest.mark.parametrize("make", [partial(load_backbone, "timm:test_vit"), small_open_clip])
def test_paths_are_taken_by_every_library(make, tmp_path):
    with pytest.raises(UserError, match=r"no\.safetensors' does not exist"):
        make(weights=tmp_path / "no.safetensors")


def test_fingerprint_is_of_the_original_layout_and_sees_one_changed_bit(tiny):
    before = fingerprint(tiny.model)
    assert tiny.fingerprint == before
    copy = build_tiny_clip(CONFIG)
    copy.model.load_state_dict(tiny.model.state_dict())
    assert fingerprint(copy.model) == before
    with torch.no_grad():
        copy.model.visual.proj.view(torch.int32)[0, 0] ^= 1
    assert fingerprint(copy.model) != before
    split_attention(copy)
    assert fingerprint(copy.model) != before


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_spec_with_a_local_file_rebuilds_the_same_backbone(tiny, tmp_path, suffix):
    path = str(tmp_path / f"weights{suffix}")
    state = {name: tensor.half() for name, tensor in tiny.model.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    one = load_backbone("tiny-clip", path)
    assert one.spec == {"name": "tiny-clip", "weights": path}
    assert load_backbone(**one.spec).fingerprint == one.fingerprint
    assert torch.equal(one.model.visual.proj, tiny.model.visual.proj.half().float())


def test_options_are_part_of_the_spec():
    backbone = load_backbone("timm:vit_tiny_patch16_224", "random", **SMALL)
    assert backbone.spec == {"name": "timm:vit_tiny_patch16_224", "weights": "random", **SMALL}
    assert len(load_backbone(**backbone.spec).towers["vision"].blocks) == 3


def test_open_clip_gives_the_librarys_own_embeddings_and_loads_its_files_strictly(tmp_path):
    backbone = small_open_clip().eval()
    pixels, tokens = torch.randn(2, 3, 32, 32), backbone.tokenizer(["a cat", "a dog"])
    with torch.no_grad():
        assert torch.equal(backbone.encode_image(pixels), backbone.model.encode_image(pixels))
        assert torch.equal(backbone.encode_text(tokens), backbone.model.encode_text(tokens))
    assert backbone.preprocess.size == 32
    assert backbone.preprocess.mean == open_clip.OPENAI_DATASET_MEAN
    assert len(select(split_attention(backbone))) == (2 + 2) * 3
    path = str(tmp_path / "w.safetensors")
    save_file({k: v.contiguous() for k, v in small_open_clip().model.state_dict().items()}, path)
    options = backbone.options
    loaded = load_backbone("open_clip:ViT-B-32", path, **options)
    assert loaded.weights == path
    assert loaded.fingerprint == load_backbone("open_clip:ViT-B-32", path, **options).fingerprint
    with pytest.raises(ArtefactError, match=r"w.safetensors' (cannot be loaded: size mismatch|does not fit).*"):
        small_open_clip(weights=path, vision_cfg=options["vision_cfg"] | {"width": 32})


@pytest.mark.parametrize(
    ("overrides", "towers"),
    [
        ({"force_custom_text": True}, {"vision": 2, "text": 2}),
        ({"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 32, "head_width": 32}}, {"text": 2}),
        (
            {"vision_cfg": {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token"}},
            {"vision": 12, "text": 2},
        ),
        ({"vision_cfg": {"image_size": 64, "timm_model_name": "resnet10t"}}, {"text": 2}),
    ],
    ids=["custom-text", "modified-resnet", "timm-vit", "timm-resnet"],
)
def test_every_kind_of_open_clip_tower_encodes_and_can_be_adapted(overrides, towers):
    from peft import LoraConfig, get_peft_model

    backbone = small_open_clip(**overrides).eval()
    assert {name: len(tower.blocks) for name, tower in backbone.towers.items()} == towers
    size = backbone.preprocess.size
    tokens = backbone.image_tokens(torch.randn(1, 3, size, size))
    assert tokens.ndim == 3
    assert backbone.encode_image(torch.randn(1, 3, size, size)).shape == (1, 512)
    split_attention(backbone)
    targets = select(backbone, towers=list(towers), modules=("q", "k", "v", "o", "fc1", "fc2"))
    assert len(targets) == 6 * sum(towers.values())
    assert not coverage(get_peft_model(backbone, LoraConfig(r=1, target_modules=targets))).dead


def test_hugging_face_text_towers_are_described():
    from open_clip.hf_model import HFTextEncoder
    from transformers import BertConfig

    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=40)
    model = small_open_clip(force_custom_text=True).model
    model.text = HFTextEncoder("bert-tiny", 512, config=config, proj_type="linear", pooler_type="cls_pooler")
    backbone = wrap_open_clip(
        model,
        name="test",
        weights="random",
        embed_dim=512,
        preprocess=open_clip.get_model_preprocess_cfg(model),
        tokenizer=lambda texts: torch.ones(len(texts), 5, dtype=torch.long),
    )
    targets = select(backbone, towers=["text"], modules=("q", "k", "v", "o", "fc1", "fc2"))
    assert len(targets) == 12
    assert backbone.encode_text(backbone.tokenizer(["a"])).shape == (1, 512)


@pytest.mark.parametrize(
    ("name", "options", "blocks", "modules", "tokens"),
    [
        ("vit_tiny_patch16_224", SMALL, 3, "q k v o fc1 fc2", 16),
        ("vit_tiny_patch16_224", SMALL | {"reg_tokens": 4, "qk_norm": True}, 3, "q k v o fc1 fc2", 16),
        ("deit_tiny_distilled_patch16_224", SMALL, 3, "q k v o fc1 fc2", 16),
        ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 2}, 2, "q k v o fc1 fc2", 4),
        ("beit_base_patch16_224", SMALL, 3, "o fc1 fc2", 16),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "num_heads": (1, 2, 4, 8)}, 12, "o fc1 fc2", 49),
        ("resnet10t", {}, 0, "", 36),
    ],
)
def test_timm_models_encode_and_name_linears_that_exist(name, options, blocks, modules, tokens):
    backbone = load_backbone(f"timm:{name}", "random", **options).eval()
    size = backbone.preprocess.size
    pixels = torch.randn(1, 3, size, size)
    assert backbone.encode_image(pixels).shape == (1, backbone.embed_dim)
    assert backbone.image_tokens(pixels).shape[:2] == (1, tokens)
    tower = backbone.towers.get("vision")
    assert (len(tower.blocks), " ".join(tower.modules)) == (blocks, modules) if tower else blocks == 0
    if tower:
        split_attention(backbone)
        for path in select(backbone, towers=["vision"], modules=modules.split()):
            assert isinstance(backbone.get_submodule(path), nn.Linear)
    for call in (backbone.encode_text, lambda _: backbone.logit_scale):
        with pytest.raises(UserError, match="no text tower"):
            call(torch.zeros(1, 1))


def test_timm_image_tokens_leave_out_class_and_register_tokens():
    backbone = load_backbone(
        "timm:vit_tiny_patch16_224", "random", **SMALL, reg_tokens=4, global_pool="avg", fc_norm=False
    ).eval()
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(backbone.image_tokens(pixels).mean(1), backbone.encode_image(pixels))


def test_timm_loads_a_published_file_with_classifier_and_another_resolution(tmp_path):
    torch.manual_seed(0)
    trained = timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=10)
    path = str(tmp_path / "model.safetensors")
    save_file(trained.state_dict(), path)
    backbone = load_backbone("timm:vit_tiny_patch16_224", path, **SMALL)
    assert torch.equal(backbone.model.blocks[2].attn.qkv.weight, trained.blocks[2].attn.qkv.weight)
    assert torch.equal(backbone.model.pos_embed, trained.pos_embed)
    larger = load_backbone("timm:vit_tiny_patch16_224", path, **(SMALL | {"img_size": 64}))
    assert larger.model.pos_embed.shape == (1, 65, 48)
    with pytest.raises(ArtefactError, match=r"12 missing \(first 'blocks.3.norm1.weight'\)"):
        load_backbone("timm:vit_tiny_patch16_224", path, **(SMALL | {"depth": 4}))


class Harmful:
    def __reduce__(self):
        return (open, ("harmful-was-here", "w"))


@pytest.mark.parametrize("name", ["tiny-clip", "open_clip:ViT-B-32", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize(
    "kind", ["missing", "noise.safetensors", "noise.pt", "pickle.pt", "other.safetensors", "list.pt"]
)
def test_unusable_weight_files_are_one_line_that_names_the_file(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / ("none.safetensors" if kind == "missing" else kind))
    if kind.startswith("noise"):
        (tmp_path / kind).write_bytes(b"these are not weights" * 9)
    elif kind.startswith("pickle"):
        torch.save({"a": Harmful()}, path)
    elif kind.startswith("list"):
        torch.save([1, 2], path)
    elif kind.startswith("other"):
        save_file({"odd.weight": torch.ones(2)}, path)
    options = {} if name == "tiny-clip" else SMALL
    if name.startswith("open_clip"):
        options = small_open_clip().options
    with pytest.raises(UserError, match=re.escape(path)) as caught:
        load_backbone(name, path, **options)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ArtefactError) == (kind != "missing")
    assert not (tmp_path / "harmful-was-here").exists()
    if kind.startswith("other"):
        assert "1 unexpected (first 'odd.weight')" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("open_clop:ViT-B-16", "random", "Did you mean 'open_clip'"),
        ("open_clip:", "random", "lacks an architecture"),
        ("open_clip", None, "unknown open_clip architecture ''"),
        ("open_clip:ViT-B16", "random", "Did you mean 'ViT-B-16'"),
        ("open_clip:ViT-B-16", "opnai", "unknown weights 'opnai'.* Did you mean 'openai'"),
        ("timm:vit_smal_patch16_224", "random", "Did you mean 'vit_small_patch16_224'"),
        ("timm:vit_tiny_patch16_224", "augreg_in22k", "Did you mean 'augreg_in21k'"),
        ("timm:vit_tiny_patch16_224.nonsense", "random", "unknown weights 'nonsense'"),
        ("tiny-clip:large", "random", "there is only one"),
    ],
)
def test_wrong_names_are_answered_with_the_nearest(name, weights, message):
    with pytest.raises(UserError, match=message):
        load_backbone(name, weights)


@pytest.mark.parametrize("name", ["open_clip:ViT-B-32", "timm:vit_tiny_patch16_224"])
def test_unknown_options_are_named(name):
    with pytest.raises(UserError, match=r"does not accept these options.*no_such_option"):
        load_backbone(name, "random", no_such_option=1)


def test_a_failed_download_says_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise OSError("Network is unreachable\nand a long trace")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    with pytest.raises(UserError, match=r"could not be fetched \(Network is unreachable\).*path/to/file.safetensors"):
        load_backbone("timm:vit_tiny_patch16_224", "augreg_in21k")
    monkeypatch.setattr("open_clip.factory.download_pretrained", refuse)
    with pytest.raises(UserError, match=r"'openai' could not be fetched \(.*Network is unreachable.*\)"):
        load_backbone("open_clip:RN50", "pretrained")


def test_a_tag_brings_its_own_activation(monkeypatch, tmp_path):
    seen = {}

    def record(arch, pretrained=None, **options):
        seen.update(options, pretrained=pretrained)
        raise OSError("stop here")

    monkeypatch.setattr("open_clip.create_model", record)
    with pytest.raises(UserError, match="stop here"):
        load_backbone("open_clip:ViT-B-16", "openai")
    assert (seen["pretrained"], seen["force_quick_gelu"]) == ("openai", True)
    seen.clear()
    with pytest.raises(UserError, match="stop here"):
        load_backbone("open_clip:ViT-B-16", "laion2b_s34b_b88k")
    assert "force_quick_gelu" not in seen
