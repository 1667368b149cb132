import peft
import pytest
import torch
from fixtures.models import moved
from torch import nn

from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.peft_method import peft_method
from vision_lowrank.adapters.tuner import tuner_layers
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attachment.merge import merge
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import UserError
from vision_lowrank.identity import fingerprint


def backbone(dtype=torch.float32):
    torch.manual_seed(0)
    return load_backbone("tiny-clip", weights="random").eval().to(dtype)


def pixels(dtype=torch.float32):
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1)).to(dtype)


def adapted_paths(model):
    return [path.removeprefix("base_model.model.") for path, _ in tuner_layers(model)]


def test_attach_adapts_exactly_what_was_named_and_freezes_the_rest():
    model = attach(backbone(), LoraConfig(r=2), towers=("text",), layers="-1:", modules=("v", "fc1"))
    last = model.towers["text"].blocks[-1]
    assert sorted(adapted_paths(model)) == sorted(f"{last}.{model.towers['text'].modules[m]}" for m in ("v", "fc1"))
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == 4
    assert all("lora_" in name for name in trainable)


def test_attach_takes_all_towers_by_default_and_answers_like_the_backbone():
    base = backbone()
    with torch.no_grad():
        before = base.encode_image(pixels())
    model = attach(base, LoraConfig(r=2))
    assert len(adapted_paths(model)) == 3 * sum(len(tower.blocks) for tower in base.towers.values())
    assert (model.towers, model.fingerprint, model.preprocess) == (base.towers, base.fingerprint, base.preprocess)
    assert model.transform is not None
    assert model.tokenizer(["a cat"]).shape[0] == 1
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(pixels()), before, rtol=1e-5, atol=1e-5)


def test_the_config_stays_as_the_user_made_it():
    config = BlockLoraConfig(r=2)
    attach(backbone(), config)
    assert config.target_modules is None


def test_a_second_attach_adds_an_adapter_and_activates_it():
    model = moved(attach(backbone(), BlockLoraConfig(r=2)))
    with torch.no_grad():
        first = model.encode_image(pixels())
    again = attach(model, BlockLoraConfig(r=4), modules=("o",), adapter_name="second")
    assert again is model
    assert model.active_adapters == ["second"]
    assert all(".second." in name for name, p in model.named_parameters() if p.requires_grad)
    model.set_adapter("default")
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels()), first)


def test_slices_of_attention_are_adapted_independently():
    model = moved(attach(backbone(), LoraConfig(r=2), towers=("vision",)))
    block = model.get_submodule(f"base_model.model.{model.towers['vision'].blocks[0]}")
    x = torch.randn(2, 5, block.attn.q_proj.in_features)
    before = [block.attn.k_proj(x), block.attn.v_proj(x), block.attn.q_proj(x)]
    nn.init.normal_(block.attn.q_proj.lora_B["default"].weight)
    assert torch.equal(block.attn.k_proj(x), before[0])
    assert torch.equal(block.attn.v_proj(x), before[1])
    assert not torch.equal(block.attn.q_proj(x), before[2])
    deltas = [getattr(block.attn, f"{letter}_proj").get_delta_weight("default") for letter in "qkv"]
    assert torch.linalg.matrix_rank(deltas[0].detach()) == 2
    assert torch.linalg.matrix_rank(torch.cat(deltas).detach()) == 6


@pytest.mark.parametrize(("towers", "reached"), [(("vision", "text"), True), (("vision",), False)])
def test_text_gradient_exists_only_where_the_text_tower_is_adapted(towers, reached):
    model = moved(attach(backbone(), LoraConfig(r=2), towers=towers))
    assert model.encode_text(model.tokenizer(["a cat"])).requires_grad == reached


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"towers": ("vsion",)}, "Did you mean 'vision'?"),
        ({"modules": ("qq",)}, "no module 'qq'"),
        ({"config": BlockLoraConfig(r=4096, blocks=2)}, "largest r allowed there is"),
        ({"config": LoraConfig(r=4096)}, "largest r allowed there is"),
        ({"config": peft_method("MISS", r=4096)}, "PEFT refuses MISS here"),
        ({"config": peft.PromptTuningConfig()}, "PromptTuningConfig is no config"),
        ({"adapter_name": "a.b"}, "'a.b' cannot name an adapter"),
    ],
)
def test_mistakes_are_one_line_and_leave_the_backbone_without_adapter(arguments, words):
    base = backbone()
    with torch.no_grad():
        before = base.encode_image(pixels())
    with pytest.raises(UserError) as error:
        attach(base, **{"config": BlockLoraConfig(r=2), **arguments})
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not tuner_layers(base)
    with torch.no_grad():
        torch.testing.assert_close(base.encode_image(pixels()), before, rtol=1e-5, atol=1e-5)
    attach(base, LoraConfig(r=2))


def test_misuse_of_models_is_explained():
    base = backbone()
    model = attach(base, LoraConfig(r=2))
    with pytest.raises(UserError, match="pass the model that attach returned"):
        attach(base, LoraConfig(r=2))
    with pytest.raises(UserError, match="already has an adapter 'default'"):
        attach(model, LoraConfig(r=2))
    with pytest.raises(UserError, match="cannot mix"):
        attach(model, BlockLoraConfig(r=2), adapter_name="second")
    with pytest.raises(UserError, match="split_attention"):
        attach(nn.Linear(4, 4), LoraConfig(r=2))


def test_a_dead_adapter_is_an_error_and_taken_off_again():
    from vision_lowrank.errors import DeadAdapterError

    base = backbone()
    base.stray = nn.Linear(4, 4)
    config = LoraConfig(r=2, target_modules=["stray"])
    with pytest.raises(DeadAdapterError, match="stray"):
        attach(base, config)
    assert not tuner_layers(base)
    assert tuner_layers(attach(base, config, check=False))


@pytest.mark.parametrize(
    "config", [LoraConfig(r=2), BlockLoraConfig(r=2), peft_method("DORA", r=2)], ids=["lora", "block_lora", "DORA"]
)
def test_merge_gives_the_librarys_own_model_with_the_adapted_output(config):
    base = backbone()
    layout = {name: tensor.shape for name, tensor in base.state_dict().items()}
    model = moved(attach(base, config))
    with torch.no_grad():
        before = model.encode_image(pixels())
        merged = merge(model)
        assert {name: tensor.shape for name, tensor in merged.state_dict().items()} == layout
        torch.testing.assert_close(merged.encode_image(pixels()), before, rtol=1e-4, atol=1e-5)
        assert torch.equal(model.encode_image(pixels()), before)
    assert not tuner_layers(merged)
    assert merged.fingerprint == fingerprint(merged.model) != model.fingerprint
    assert not any(p.requires_grad for p in merged.parameters())


def test_merge_in_place_needs_no_copy():
    base = backbone()
    merged = merge(moved(attach(base, LoraConfig(r=2))), in_place=True)
    assert merged is base


@pytest.mark.parametrize("config", [LoraConfig(r=2), BlockLoraConfig(r=2)], ids=["lora", "block_lora"])
def test_half_precision_weights_are_merged_in_float32_and_rounded_once(config):
    model = moved(attach(backbone(torch.bfloat16), config, towers=("vision",), modules=("fc1",)))
    path, layer = tuner_layers(model)[0]
    delta = layer.get_delta_weight("default").detach()
    expected = (layer.get_base_layer().weight.float() + delta).bfloat16()
    merged = merge(model).get_submodule(path.removeprefix("base_model.model."))
    assert delta.dtype == torch.float32
    assert torch.equal(merged.weight, expected)


def test_what_cannot_be_merged_says_so():
    with pytest.raises(UserError, match="LILY cannot be merged"):
        merge(attach(backbone(), peft_method("LILY", r=2), check=False))
    with pytest.raises(UserError, match="needs a model with adapters"):
        merge(backbone())
