"""Files for diffusers and kohya's readers, loaded by diffusers' own loaders and compared by ΔW."""

import peft
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from fixtures.models import moved
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.kasa import KasaConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.adapters.tuner import tuner_layers
from vision_lowrank.errors import UserError
from vision_lowrank.export.lora import export_lora

CONFIGS = {
    "lora": lambda targets: LoraConfig(r=3, alpha=2, target_modules=targets),
    "block_lora": lambda targets: BlockLoraConfig(r=4, blocks=2, alpha=5, target_modules=targets),
    # carries an offset: a stacked pair of rank 4
    "kasa": lambda targets: KasaConfig(r=2, alpha=3, target_modules=targets),
    "mixed ranks": lambda targets: peft.LoraConfig(
        r=2, lora_alpha=6, rank_pattern={"to_k": 3}, alpha_pattern={"to_v": 5}, target_modules=targets
    ),
}
every_config = pytest.mark.parametrize("config", CONFIGS)


def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        use_linear_projection=True,
    ).eval()


def adapted(config, model, targets):
    torch.manual_seed(1)
    return moved(peft.get_peft_model(model, CONFIGS[config](targets)))


def deltas(model, adapter="default"):
    prefix = "base_model.model."
    return {path.removeprefix(prefix): layer.get_delta_weight(adapter).detach() for path, layer in tuner_layers(model)}


class Pipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """The part of a Stable Diffusion pipeline that loads LoRAs."""

    _optional_components = ("text_encoder",)

    def __init__(self, unet, text_encoder=None):
        super().__init__()
        self.register_modules(unet=unet, text_encoder=text_encoder)


def same(own, other):
    assert own.keys() == other.keys()
    for name in own:
        assert own[name].abs().max() > 1e-3
        torch.testing.assert_close(
            other[name], own[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text
        )


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@every_config
def test_diffusers_loads_its_format_into_a_pipeline(config, tmp_path):
    model = adapted(config, unet(), [*ATTENTION, "ff.net.0.proj", "proj_in"])
    report = export_lora(model, tmp_path / "lora", "diffusers")
    assert report.exact
    assert report.path == tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    pipeline = Pipeline(unet())
    pipeline.load_lora_weights(str(tmp_path / "lora"), adapter_name="own")
    same(deltas(model), deltas(pipeline.unet, "own"))


@pytest.mark.parametrize("component", ["unet", "transformer"])
def test_a_single_model_loads_the_diffusers_format_by_its_prefix(component, tmp_path):
    model = adapted("block_lora", unet(), ATTENTION)
    export_lora(model, tmp_path / "mine.safetensors", "diffusers", component=component)
    again = unet()
    again.load_lora_adapter(str(tmp_path), weight_name="mine.safetensors", prefix=component, adapter_name="own")
    same(deltas(model), deltas(again, "own"))


@every_config
def test_diffusers_converts_the_kohya_format(config, tmp_path):
    model = adapted(config, unet(), [*ATTENTION, "ff.net.2", "proj_out"])
    report = export_lora(model, tmp_path / "kohya.safetensors", "kohya")
    assert report.exact
    pipeline = Pipeline(unet())
    pipeline.load_lora_weights(str(tmp_path), weight_name="kohya.safetensors", adapter_name="own")
    same(deltas(model), deltas(pipeline.unet, "own"))


def test_kohya_files_hold_the_factors_and_an_explicit_alpha(tmp_path):
    model = adapted("block_lora", unet(), ["to_q"])
    path = export_lora(model, tmp_path, "kohya").path
    state = load_file(path)
    name, layer = tuner_layers(model)[0]
    key = "lora_unet_" + name.removeprefix("base_model.model.").replace(".", "_")
    own = layer.weight_update["default"]
    assert torch.equal(state[f"{key}.lora_down.weight"], own.A)
    assert torch.equal(state[f"{key}.lora_up.weight"], own.B.sum(dim=0))
    assert state[f"{key}.alpha"].item() == pytest.approx(5 / 4**0.5 * 2)
    assert len(state) == 3 * len(tuner_layers(model))
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert (about["ss_network_module"], about["ss_network_dim"]) == ("networks.lora", "2")
    assert float(about["ss_network_alpha"]) == pytest.approx(5.0)


def test_kohya_files_have_one_alpha_even_where_ranks_and_scales_differ(tmp_path):
    """diffusers 0.42 gives attention layers the most frequent alpha of the file whatever their own is."""
    path = export_lora(adapted("mixed ranks", unet(), ATTENTION), tmp_path, "kohya").path
    assert {tensor.item() for name, tensor in load_file(path).items() if name.endswith("alpha")} == {6.0}
    with safe_open(path, "pt") as file:
        assert (file.metadata()["ss_network_dim"], file.metadata()["ss_network_alpha"]) == ("Dynamic", "6.0")


def text_encoder():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=32, max_position_embeddings=8, **sizes)).eval()


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_a_text_encoder_takes_both_formats(format, tmp_path):
    model = adapted("block_lora", text_encoder(), ["q_proj", "v_proj", "out_proj"])
    export_lora(model, tmp_path, format, component="text_encoder")
    encoder = text_encoder()
    pipeline = Pipeline(unet(), encoder)
    pipeline.load_lora_weights(str(tmp_path), adapter_name="own")
    same(deltas(model), deltas(encoder, "own"))


def test_names_that_kohya_cannot_tell_apart_are_refused(tmp_path):
    twins = nn.ModuleDict({"a_b": nn.Linear(4, 4), "a": nn.ModuleDict({"b": nn.Linear(4, 4)})})
    model = peft.get_peft_model(twins, LoraConfig(r=2, target_modules=["a_b", "a.b"]))
    with pytest.raises(UserError, match="calls two layers 'lora_unet_a_b'"):
        export_lora(model, tmp_path / "x", "kohya")
    assert not (tmp_path / "x").exists()


def test_mistakes_in_format_component_and_place_are_explained(tmp_path):
    model = peft.get_peft_model(nn.Sequential(nn.Linear(6, 5)), LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(UserError, match="Did you mean 'diffusers'"):
        export_lora(model, tmp_path / "x", "difusers")
    with pytest.raises(UserError, match=r"unknown component 'unett'\. Did you mean 'unet'"):
        export_lora(model, tmp_path / "x", "kohya", component="unett")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export_lora(model, tmp_path / "file" / "x.safetensors", "kohya")
