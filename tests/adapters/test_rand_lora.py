import json

import numpy as np
import peft
import pytest
import torch
from fixtures.models import moved
from peft.tuners.randlora.layer import UniqueBaseGrad
from safetensors import safe_open
from torch import nn

from vision_lowrank.adapters.rand_lora import RandLoraConfig
from vision_lowrank.adapters.tuner import tuner_layers
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attachment.store import load, save
from vision_lowrank.attention.split import split_attention
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import UserError


def linears(*sizes):
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(inside, outside) for inside, outside in sizes])


def attached(*sizes, dtype=torch.float64, **options):
    model = linears(*sizes)
    targets = [str(i) for i in range(len(sizes))]
    return peft.get_peft_model(model, RandLoraConfig(**{"r": 4, "target_modules": targets} | options)).to(dtype)


def layers(model):
    return [layer for _, layer in tuner_layers(model)]


def scales(layer):
    """The trained λ (r, n) and γ (n, d)."""
    return layer.randlora_lambda["default"], layer.randlora_gamma["default"]


def delta(layer):
    return layer.get_delta_weight("default").detach()


SHAPES = pytest.mark.parametrize("shape", [(16, 12), (12, 16), (12, 12)], ids=str)


@SHAPES
@pytest.mark.parametrize("r", [4, 5, 12, 20])
def test_parameter_count_is_ceil_d_over_r_times_r_plus_d(shape, r):
    (layer,) = layers(attached(shape, r=r))
    bases = -(-12 // r)
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == bases * (r + 12)
    assert scales(layer)[1].shape == (bases, 12)


def test_published_parameter_count_of_a_vit_b_layer():
    (layer,) = layers(attached((768, 3072), r=6, dtype=torch.bfloat16))
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == 99_072


@SHAPES
@pytest.mark.parametrize("r", [4, 5])
def test_update_is_the_sum_over_bases_of_the_paper(shape, r):
    """With PEFT's pairing: column c = j r + k of the flattened B meets row c = k' n + j' of the flattened λ A γ."""
    (layer,) = layers(moved(attached(shape, r=r, alpha=7.0)))
    (lam, gamma), (n, d) = (tensor.detach().numpy() for tensor in scales(layer)), scales(layer)[1].shape
    A = layer.randlora_A["default"].numpy()[:, 0, :d]
    B = layer.randlora_B["default"].numpy()[: max(shape), :n].reshape(max(shape), n * r)
    large_by_small = sum(np.outer(B[:, k * n + j], lam[k, j] * A[k] * gamma[j]) for k in range(r) for j in range(n))
    expected = 7 / r * (large_by_small if shape[1] >= shape[0] else large_by_small.T)
    np.testing.assert_allclose(delta(layer).numpy(), expected, rtol=1e-12, atol=1e-12)


@SHAPES
def test_rank_is_full_with_free_gamma_and_r_with_equal_rows(shape):
    (layer,) = layers(moved(attached(shape), amount=1.0))
    assert torch.linalg.matrix_rank(delta(layer), rtol=1e-8) == 12
    with torch.no_grad():
        scales(layer)[1].copy_(scales(layer)[1][:1].expand_as(scales(layer)[1]).clone())
    assert torch.linalg.matrix_rank(delta(layer), rtol=1e-8) == 4


def test_first_step_moves_lambda_only():
    model = attached((16, 12), (12, 16))
    model(torch.randn(3, 16, dtype=torch.float64)).square().sum().backward()
    for layer in layers(model):
        lam, gamma = scales(layer)
        assert lam.grad.abs().max() > 0
        assert torch.count_nonzero(gamma.grad) == 0


def test_layers_share_the_storage_of_the_bases_and_none_trains():
    model = attached((16, 12), (12, 16), (16, 12))
    for name in ("randlora_A", "randlora_B"):
        assert len({getattr(layer, name)["default"].data_ptr() for layer in layers(model)}) == 1
    assert not any("randlora_A" in name or "randlora_B" in name for name, _ in model.named_parameters())


def test_the_seed_alone_decides_the_bases():
    def update(seed, key):
        torch.manual_seed(seed)
        model = attached((16, 12), projection_prng_key=key)
        return delta(layers(moved(model))[0])

    assert torch.equal(update(1, 5), update(2, 5))
    assert not torch.allclose(update(1, 5), update(1, 6))


def test_bases_have_standard_deviation_one():
    (layer,) = layers(attached((256, 200), r=8, dtype=torch.float32))
    assert layer.randlora_A["default"].float().std().item() == pytest.approx(1, abs=1e-2)
    assert layer.randlora_B["default"].float().std().item() == pytest.approx(1, abs=1e-2)


def test_update_is_linear_in_alpha_which_defaults_to_twice_r():
    by_alpha = {alpha: delta(layers(moved(attached((16, 12), alpha=alpha)))[0]) for alpha in (None, 8.0, 80.0)}
    torch.testing.assert_close(by_alpha[None], by_alpha[8.0], rtol=0, atol=0)
    torch.testing.assert_close(by_alpha[80.0], 10 * by_alpha[8.0], rtol=1e-12, atol=0)
    assert by_alpha[8.0].abs().max() > 0


def test_the_hand_written_backward_is_the_gradient_of_the_plain_product():
    (layer,) = layers(moved(attached((8, 6), r=2)))
    A = layer.randlora_A["default"][:, :3, :6].clone()
    lam, gamma = (tensor.detach().clone().requires_grad_() for tensor in scales(layer))
    assert torch.autograd.gradcheck(lambda lam, gamma: UniqueBaseGrad.apply(A, lam, gamma), (lam, gamma))


def test_shared_bases_are_saved_once_and_loaded_into_all_layers(tmp_path):
    def backbone():
        torch.manual_seed(0)
        return load_backbone("tiny-clip", weights="random").eval()

    model = moved(attach(backbone(), RandLoraConfig(r=6), modules=("q", "v")), amount=0.05)
    with torch.no_grad():  # bases that no seed gives: they must come from the file
        model.base_model.randlora_A["default"].mul_(2)
    save(model, tmp_path / "adapter")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert sum("randlora_A" in name for name in names) == sum("randlora_B" in name for name in names) == 1
    assert sum("randlora_lambda" in name for name in names) == len(layers(model)) > 2
    again = load(tmp_path / "adapter", backbone())
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(again.encode_image(pixels), model.encode_image(pixels))
    with pytest.warns(UserWarning, match="missing adapter keys"):  # of the layers that share
        plain = peft.PeftModel.from_pretrained(split_attention(backbone()), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(plain.encode_image(pixels), model.encode_image(pixels))


def test_what_is_saved_is_a_config_of_peft(tmp_path):
    attached((16, 12), alpha=9.0, dropout=0.1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["randlora_alpha"], config["randlora_dropout"]) == ("RANDLORA", 9.0, 0.1)
    assert not {"alpha", "dropout"} & config.keys()


@pytest.mark.parametrize(("options", "share"), [({"sparse": True, "r": 6}, "9%"), ({"very_sparse": True}, "80%")])
def test_sparse_bases_with_dead_columns_warn(options, share):
    with pytest.warns(UserWarning, match=f"about {share} of A's columns are zero"):
        RandLoraConfig(**options)


def test_the_warned_share_of_dead_columns_is_what_is_drawn():
    with pytest.warns(UserWarning, match="columns are zero"):
        (layer,) = layers(attached((768, 768), r=6, very_sparse=True, dtype=torch.float32))
    dead = (layer.randlora_A["default"] == 0).all(dim=0).float().mean()
    assert dead == pytest.approx(0.8, abs=0.05)


@pytest.mark.filterwarnings("error")
def test_dense_bases_and_sparse_ones_of_high_rank_do_not_warn():
    RandLoraConfig()
    RandLoraConfig(sparse=True, r=16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 0}, "r = 0"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"sparse": True, "very_sparse": True}, "exclude each other"),
    ],
)
def test_bad_options_are_explained(options, words):
    with pytest.raises(UserError, match=words):
        RandLoraConfig(**options)
