import ast
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from fixtures.multimodal import picture, shared, tiles_for

from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attachment.store import load, save
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.backbones.multimodal import load as multimodal_load
from vision_lowrank.backbones.multimodal.families import FAMILIES
from vision_lowrank.backbones.multimodal.sizes import PUBLISHED, TINY
from vision_lowrank.errors import ArtefactError, UserError
from vision_lowrank.identity import fingerprint


@pytest.fixture(params=TINY)
def backbone(request):
    return shared(request.param)


@torch.no_grad()
def test_saved_and_loaded_it_gives_the_same_and_generates(backbone, tmp_path):
    tiles = tiles_for(backbone, 3)
    backbone.model.save_pretrained(tmp_path)
    backbone.processor.save_pretrained(tmp_path)
    again = load_backbone(backbone.name, weights=tmp_path)
    assert again.fingerprint == fingerprint(backbone.model)
    assert again.preprocess == backbone.preprocess
    states, others = (b.image_states(tiles, [1, 2], [4])[0][0] for b in (backbone, again))
    assert torch.equal(states, others)
    texts = [b.generate(tiles, [1, 2], ["what?", "why?"], max_new_tokens=3) for b in (backbone, again)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2
    file = load_backbone(backbone.name, weights=tmp_path / "model.safetensors")
    assert file.fingerprint == fingerprint(backbone.model)
    assert file.spec == {"name": backbone.name, "weights": str(tmp_path / "model.safetensors")}
    first, second = (b.prepare([picture()], ["what?"]) for b in (backbone, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_options():
    own = load_backbone("hf:tiny-internvl3_5", "random", dtype="bfloat16", gradient_checkpointing=True, image_size=112)
    assert own.spec == {
        "name": "hf:tiny-internvl3_5",
        "weights": "random",
        "image_size": 112,
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
    }
    assert own.token_grid == (4, 4)
    assert own.model.dtype == torch.bfloat16
    model = attach(own, LoraConfig(r=2), modules=["q", "fc2"]).train()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    (state,), _ = model.image_states(tiles_for(own, 2), [2], [3])
    assert state.dtype == torch.bfloat16
    state.float().square().mean().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_B" in n and "layers.3" not in n)


def test_a_blank_tile_is_a_tile(backbone):
    tiles = torch.zeros(2, 3, backbone.preprocess.size, backbone.preprocess.size)
    (state,), valid = backbone.image_states(tiles, [2], [1])
    assert state.isfinite().all()
    assert valid.all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf:tiny-internvl", {}, "no size here .* Did you mean"),
        ("hf:tiny-smolvlm", {"weights": "pretrained"}, "has no pretrained weights"),
        ("hf:tiny-smolvlm", {"weights": "no.safetensors"}, "'no.safetensors' does not exist"),
        ("hf:tiny-smolvlm", {"weights": "best"}, "unknown weights 'best'"),
        ("hf:tiny-smolvlm", {"dtype": "int8"}, "unknown dtype 'int8'"),
        ("hf:tiny-smolvlm", {"image_size": 128}, "reads tiles of 64 pixels only"),
        ("hf:tiny-qwen2-vl", {"image_size": 64}, "image_size = 64: .* such as 56"),
        ("hf:OpenGVLab/InternVL3_5-1B-HF", {"weights": "pretrained"}, "could not be fetched"),
    ],
)
def test_what_cannot_be_loaded_is_said(name, options, message):
    with pytest.raises(UserError, match=message):
        load_backbone(name, **{"weights": "random"} | options)


def test_a_folder_of_another_model_is_refused(tmp_path):
    backbone = shared("tiny-internvl3")
    backbone.model.save_pretrained(tmp_path)
    with pytest.raises(ArtefactError, match="does not fit the model"):
        load_backbone("hf:tiny-smolvlm", weights=tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="could not be fetched"):
        load_backbone("hf:tiny-internvl3", weights=tmp_path)  # no processor in it


def test_arguments_are_checked():
    backbone = shared("tiny-smolvlm")
    tiles = tiles_for(backbone, 2)
    with pytest.raises(UserError, match="2 prompts do not fit 1 pictures"):
        backbone.generate(tiles, [2], ["a", "b"])
    with pytest.raises(UserError, match="1 answers do not fit 2 prompts"):
        backbone.answer_loss(tiles, [1, 1], ["a", "b"], ["c"])
    with pytest.raises(UserError, match="layer 5 does not exist"):
        backbone.image_states(tiles, [2], [5])
    with pytest.raises(UserError, match=r"reads \(3, 64, 64\)"):
        backbone.image_states(torch.zeros(1, 3, 32, 32), [1], [1])


# SmolVLM without num2words ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_smolvlm_needs_num2words_for_its_processor_alone(monkeypatch, tmp_path):
    from transformers.models.smolvlm import processing_smolvlm

    whole = shared("tiny-smolvlm")
    tiles = tiles_for(whole, 2)
    whole.model.save_pretrained(tmp_path)
    whole.processor.save_pretrained(tmp_path)
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    for weights in (tmp_path, tmp_path / "model.safetensors"):
        own = load_backbone("hf:tiny-smolvlm", weights=weights)
        assert torch.equal(own.image_states(tiles, [2], [2])[0][0], whole.image_states(tiles, [2], [2])[0][0])
        assert own.prompts([2], ["what?"]) == whole.prompts([2], ["what?"])
        with pytest.raises(UserError, match=r'pip install "vision-lowrank\[mllm\]"'):
            own.prepare([picture()], ["what?"])


# Published sizes ----------------------------------------------------------------------------------------------------

# Width and layers of the LLM, width and blocks of the tower, image tokens of a tile (card), millions of parameters.
PUBLIC = {
    "OpenGVLab/InternVL3-1B-hf": (896, 24, 1024, 24, 256, 938),
    "OpenGVLab/InternVL3-2B-hf": (1536, 28, 1024, 24, 256, 2089),
    "OpenGVLab/InternVL3_5-1B-HF": (1024, 28, 1024, 24, 256, 1061),
    "OpenGVLab/InternVL3_5-2B-HF": (2048, 28, 1024, 24, 256, 2348),
    "OpenGVLab/InternVL3_5-4B-HF": (2560, 36, 1024, 24, 256, 4732),
    "OpenGVLab/InternVL3_5-8B-HF": (4096, 36, 1024, 24, 256, 8528),
    "Qwen/Qwen2-VL-2B-Instruct": (1536, 28, 1280, 32, 256, 2209),
    "Qwen/Qwen2.5-VL-3B-Instruct": (2048, 36, 1280, 32, 256, 3755),
    "Qwen/Qwen3-VL-2B-Instruct": (2048, 28, 1024, 24, 196, 2128),
    "Qwen/Qwen3-VL-4B-Instruct": (2560, 36, 1024, 24, 196, 4438),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": (896, 24, 1152, 26, 729, 894),
    "HuggingFaceTB/SmolVLM-256M-Instruct": (576, 30, 768, 12, 64, 256),
    "HuggingFaceTB/SmolVLM-500M-Instruct": (960, 32, 768, 12, 64, 507),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    from transformers import AutoModelForImageTextToText

    from vision_lowrank.backbones.multimodal.tiny import build_config, byte_tokenizer

    size = PUBLISHED[name]
    config = build_config(size, byte_tokenizer(size.family))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    blocks = model.get_submodule(f"model.{size.family.blocks}")
    side = size.family.native(config) // size.family.patch(config) // size.family.merge(config)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    text = config.text_config
    found = (text.hidden_size, text.num_hidden_layers, size.family.width(config), len(blocks), side * side)
    assert (*found, round(millions)) == PUBLIC[name]
    adapted = [m for path, m in model.named_modules() if re.fullmatch(size.family.vision_regex, path)]
    lora = sum(16 * (m.in_features + m.out_features) for m in adapted)
    if size.model_type == "internvl":
        assert lora == 7_077_888


def test_the_table_names_what_is_there(backbone):
    for path in backbone.family.projector:
        value = backbone.model.model
        for part in path.split("."):
            value = getattr(value, part)
    assert set(FAMILIES) == {size.model_type for size in TINY.values()}


def test_tied_weights_are_in_no_file_and_an_adapter_finds_its_base(monkeypatch, tmp_path):
    size = TINY["tiny-qwen2-vl"]
    tied = dataclasses.replace(size, top={"tie_word_embeddings": True})
    monkeypatch.setitem(multimodal_load.SIZES, "tiny-qwen2-vl", tied)
    base = load_backbone("hf:tiny-qwen2-vl", "random")
    base.model.save_pretrained(tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    one, other = (load_backbone("hf:tiny-qwen2-vl", weights=weights) for _ in range(2))
    assert one.model.lm_head.weight is one.model.get_input_embeddings().weight
    assert one.fingerprint == base.fingerprint
    model = attach(one, LoraConfig(r=2))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save(model, tmp_path / "adapter")
    tiles = tiles_for(one, 1)
    again = load(tmp_path / "adapter", other)
    assert torch.equal(again.image_states(tiles, [1], [3])[0][0], model.image_states(tiles, [1], [3])[0][0])


def test_transformers_is_imported_only_where_a_model_is_built():
    for path in Path(multimodal_load.__file__).parent.glob("*.py"):
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in top for alias in node.names} | {getattr(node, "module", "") for node in top}
        assert not any((name or "").startswith(("transformers", "tokenizers")) for name in names), path
