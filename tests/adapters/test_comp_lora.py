import copy

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vision_lowrank.adapters import comp_lora as module
from vision_lowrank.adapters.comp_lora import CompLoraConfig, comp_lora
from vision_lowrank.adapters.tuner import report
from vision_lowrank.errors import ArtefactError, UserError

SHAPES = [(12, 12), (7, 15), (15, 7)]
both_forms = pytest.mark.parametrize("form", ["basis", "projector"])


def update(shape, seed=0, **options):
    """A trained update of a random weight, with that weight."""
    torch.manual_seed(seed)
    weight = torch.randn(shape, dtype=torch.float64)
    comp = comp_lora(weight, CompLoraConfig(**options), "layer")
    return weight, comp


def train(comp, seed=1):
    torch.manual_seed(seed)
    for parameter in comp.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return comp


@both_forms
@pytest.mark.parametrize("shape", SHAPES)
def test_delta_avoids_the_protected_directions_and_keeps_the_top_triplets(shape, form):
    weight, comp = update(shape, r=2, protect_rank=3, form=form)
    assert torch.count_nonzero(comp.delta()) == 0
    delta = train(comp).delta().detach().numpy()
    P, sigma, Qt = np.linalg.svd(weight.numpy())
    size = np.abs(delta).max()
    assert np.abs(delta @ Qt[:3].T).max() < 1e-12 * size
    assert np.abs(P[:, :3].T @ delta).max() < 1e-12 * size
    np.testing.assert_allclose((weight.numpy() + delta) @ Qt[:3].T, P[:, :3] * sigma[:3], atol=1e-12 * max(size, 10))
    assert np.linalg.matrix_rank(delta) == 2


def test_small_change_leaves_the_largest_singular_values():
    weight, comp = update((12, 12), r=2, protect_rank=3)
    delta = 0.01 * train(comp).delta().detach()
    before, after = torch.linalg.svdvals(weight), torch.linalg.svdvals(weight + delta)
    torch.testing.assert_close(after[:3], before[:3], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after[3:], before[3:], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_bases_are_orthonormal_and_complement_the_protected_ones(shape):
    _, basis = update(shape, r=2, protect_rank=3)
    _, projector = update(shape, r=2, protect_rank=3, form="projector")
    for own, protected, size in ((basis.U_c, projector.Q_k, shape[1]), (basis.V_c, projector.P_k, shape[0])):
        assert own.shape == (size, size - 3)
        identity = torch.eye(size, dtype=torch.float64)
        torch.testing.assert_close(own.T @ own, identity[3:, 3:], rtol=0, atol=1e-12)
        torch.testing.assert_close(own @ own.T + protected @ protected.T, identity, rtol=0, atol=1e-12)


@both_forms
def test_an_input_in_the_protected_span_passes_unchanged(form):
    weight, comp = update((7, 15), r=2, protect_rank=3, form=form)
    _, _, Qt = np.linalg.svd(weight.numpy())
    x = torch.randn(4, 3, dtype=torch.float64) @ torch.from_numpy(Qt[:3])
    assert train(comp)(x).abs().max() < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_parameter_count_of_the_basis_form(shape):
    _, comp = update(shape, r=2, protect_rank=3)
    assert sum(p.numel() for p in comp.parameters()) == 2 * (sum(shape) - 2 * 3)


def test_without_protection_it_is_lora_in_rotated_coordinates():
    _, comp = update((7, 15), r=2, protect_rank=0)
    A, _, scale = train(comp).factors()
    torch.testing.assert_close(A @ comp.U_c, comp.A)
    torch.testing.assert_close(A.norm(), comp.A.norm())
    assert scale == pytest.approx(1 / np.sqrt(2))


@pytest.mark.parametrize(("optimiser", "same"), [(torch.optim.SGD, True), (torch.optim.Adam, False)])
def test_forms_follow_one_trajectory_under_sgd_but_not_under_adam(optimiser, same):
    _, basis = update((12, 10), r=2)
    _, projector = update((12, 10), r=2, form="projector")
    torch.testing.assert_close(basis.factors().A, projector.factors().A, rtol=1e-12, atol=1e-12)
    target = torch.randn(12, 10, dtype=torch.float64)
    for comp in (basis, projector):
        steps = optimiser(comp.parameters(), lr=0.02)
        for _ in range(20):
            steps.zero_grad()
            (comp.delta() - target).square().sum().backward()
            steps.step()
    difference = (basis.delta() - projector.delta()).abs().max()
    assert basis.delta().abs().max() > 0.1
    assert difference < 1e-12 if same else difference > 1e-4


@pytest.mark.parametrize(
    ("options", "k"),
    [
        ({}, 3),
        ({"protect_ratio": 0.25}, 2),
        ({"protect_ratio": 0.0}, 0),
        ({"protect_rank": 4}, 4),
        ({"protect_energy": 0.0}, 0),
        ({"protect_energy": 16 / 24}, 1),
        ({"protect_energy": 0.7}, 2),
        ({"protect_energy": 0.9}, 4),
    ],
)
def test_protected_rank_of_known_singular_values(options, k):
    sigma = torch.tensor([4.0, 2.0, 1.0, 1.0, 1.0, 1.0])  # squares 16, 4, 1, 1, 1, 1: sum 24
    assert module.protected_rank(sigma, CompLoraConfig(**options)) == k
    comp = comp_lora(torch.diag(sigma), CompLoraConfig(r=1, **options), "layer")
    facts = comp.facts()
    assert (facts["k"], facts["c_in"], facts["c_out"]) == (k, 6 - k, 6 - k)
    assert facts["energy"] == pytest.approx(sum(sigma[:k].square().tolist()) / 24)


def linear_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 6))


def attached(seed=0, **options):
    model = peft.get_peft_model(linear_model(seed), CompLoraConfig(target_modules=["0", "1"], **options))
    return model.eval()


def test_report_names_every_layer():
    facts = report(attached(protect_rank=2))
    assert [(name.rpartition(".")[2], f["k"], f["c_in"], f["c_out"]) for name, f in facts.items()] == [
        ("0", 2, 10, 8),
        ("1", 2, 8, 4),
    ]


def flipped_svd(matrix, full_matrices=True):
    """An SVD with other signs, and other bases of the null space, as another device may give it."""
    P, sigma, Qt = torch_svd(matrix, full_matrices=full_matrices)
    signs = torch.where(torch.arange(len(sigma)) % 2 == 0, -1.0, 1.0).to(P)
    P, Qt = P.clone(), Qt.clone()
    P[:, : len(sigma)] *= signs
    Qt[: len(sigma)] *= signs[:, None]
    Qt[len(sigma) :] = Qt[len(sigma) :].flip(0)
    P[:, len(sigma) :] = P[:, len(sigma) :].flip(1)
    return P, sigma, Qt


torch_svd = torch.linalg.svd


@both_forms
def test_checkpoint_survives_an_svd_with_other_signs(form, tmp_path, monkeypatch):
    model = train(attached(protect_rank=3, form=form))
    with torch.no_grad():
        x = torch.randn(4, 12)
        before = model(x)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.linalg, "svd", flipped_svd)
    again = peft.PeftModel.from_pretrained(linear_model(), tmp_path).eval()
    if form == "basis":
        own = [layer.base_model.model[0].weight_update["default"].U_c for layer in (model, again)]
        assert not torch.allclose(*own)
    torch.testing.assert_close(again(x), before, rtol=1e-5, atol=1e-5)


def test_checkpoint_holds_an_ordinary_pair_and_no_bases(tmp_path):
    model = attached(protect_rank=3)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    shapes = {name.removeprefix("base_model.model."): tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {
        "0.weight_update.A": (2, 12),
        "0.weight_update.B": (10, 2),
        "1.weight_update.A": (2, 10),
        "1.weight_update.B": (6, 2),
    }


def test_a_file_of_either_form_loads_in_the_other(tmp_path):
    model = train(attached(protect_rank=3))
    model.save_pretrained(tmp_path)
    other = attached(protect_rank=3, form="projector")
    other.load_adapter(str(tmp_path), "default")
    x = torch.randn(4, 12)
    torch.testing.assert_close(other(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_pair_trained_on_another_base_is_refused(tmp_path):
    train(attached(protect_rank=3)).save_pretrained(tmp_path)
    with pytest.raises(ArtefactError, match="outside this weight's complement"):
        peft.PeftModel.from_pretrained(linear_model(seed=5), tmp_path)


def test_the_slices_of_a_fused_weight_have_their_own_complements():
    torch.manual_seed(0)
    fused = torch.randn(36, 12, dtype=torch.float64)
    whole = train(comp_lora(fused, CompLoraConfig(r=2, protect_rank=3), "qkv"))
    q_only = train(comp_lora(fused[:12], CompLoraConfig(r=2, protect_rank=3), "q"))
    _, _, Qt = torch.linalg.svd(fused[:12])
    assert (q_only.delta() @ Qt[:3].T).abs().max() < 1e-12
    assert (whole.delta()[:12] @ Qt[:3].T).abs().max() > 1e-2


def test_merging_two_adapters_one_after_the_other_keeps_what_both_protect():
    torch.manual_seed(0)
    weight = torch.diag(torch.tensor([9.0, 8.0, 1.0, 0.9, 0.8, 0.7], dtype=torch.float64))
    merged = weight.clone()
    for seed in (1, 2):
        comp = train(comp_lora(merged, CompLoraConfig(r=2, alpha=0.1, protect_rank=2), "layer"), seed)
        merged = merged + comp.delta().detach()
    torch.testing.assert_close(merged[:, :2], weight[:, :2], rtol=0, atol=1e-12)
    torch.testing.assert_close(merged[:2], weight[:2], rtol=0, atol=1e-12)
    assert (merged - weight).abs().max() > 1e-2


@both_forms
def test_dropout_acts_in_training_only(form):
    _, comp = update((12, 12), r=2, dropout=0.5, form=form)
    train(comp)
    x = torch.randn(4, 12, dtype=torch.float64)
    torch.testing.assert_close(comp.eval()(x), x @ comp.delta().T)
    assert not torch.allclose(comp.train()(x), x @ comp.delta().T)


def test_a_zero_weight_protects_no_energy():
    comp = comp_lora(torch.zeros(6, 6), CompLoraConfig(r=2, protect_energy=0.9), "layer")
    assert comp.facts() == {"k": 0, "c_in": 6, "c_out": 6, "energy": 0.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protect_rank": 3, "protect_ratio": 0.5}, "protect_rank and protect_ratio"),
        ({"protect_ratio": 1.5}, "protect_ratio = 1.5"),
        ({"protect_energy": -0.1}, "protect_energy = -0.1"),
        ({"protect_rank": -1}, "protect_rank = -1"),
        ({"form": "bases"}, "Did you mean 'basis'?"),
    ],
)
def test_impossible_options_are_refused_in_one_line(options, words):
    with pytest.raises(UserError, match=r"^[^\n]+$") as error:
        CompLoraConfig(**options)
    assert words in str(error.value)


@pytest.mark.parametrize(("options", "largest"), [({"protect_rank": 5}, 1), ({"protect_rank": 40}, 0)])
def test_a_rank_larger_than_the_complement_names_the_layer(options, largest):
    model = linear_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=rf"'1'.*largest r allowed there is {largest}|'0'.*allowed there is {largest}"):
        peft.get_peft_model(model, CompLoraConfig(r=2, target_modules=["0", "1"], **options))
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]
    assert before.keys() == model.state_dict().keys()


def test_a_file_with_a_tensor_of_another_shape_is_refused(tmp_path):
    attached().save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.0.weight_update.A"] = torch.zeros(2, 99)
    save_file(tensors, path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(linear_model(), tmp_path)
