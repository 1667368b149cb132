import numpy as np
import peft
import pytest
import scipy.linalg
import torch
from torch import nn

from vision_lowrank.adapters.loldu import Loldu, LolduConfig, ldu
from vision_lowrank.adapters.tuner import adapter_layers
from vision_lowrank.engine.task import Task
from vision_lowrank.errors import ArtefactError, UserError

SHAPES = [(7, 5), (5, 7), (6, 6)]
shapes = pytest.mark.parametrize("shape", SHAPES)


def update(shape=(7, 5), **options):
    weight = torch.randn(*shape, dtype=torch.float64)
    return weight, Loldu(weight, LolduConfig(**options), "layer")


def moved(shape=(7, 5), **options):
    weight, loldu = update(shape, **options)
    loldu.z.data.add_(torch.randn_like(loldu.z))
    return weight, loldu


def net(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).to(dtype)


def attached(**options):
    return peft.get_peft_model(net(), LolduConfig(target_modules=["0", "2"], **options))


@shapes
def test_factors_reconstruct_the_weight(shape):
    weight = torch.randn(*shape, dtype=torch.float64)
    permutation, L, D, U = ldu(weight)
    torch.testing.assert_close(L @ torch.diag(D) @ U, weight[permutation], rtol=0, atol=1e-12)
    k = min(shape)
    assert torch.equal(L, L.tril())
    assert torch.equal(U, U.triu())
    assert torch.equal(L.diagonal(), torch.ones(k, dtype=torch.float64))
    torch.testing.assert_close(U.diagonal(), torch.ones(k, dtype=torch.float64), rtol=0, atol=1e-15)
    assert L.abs().max() <= 1


@shapes
def test_factors_agree_with_scipy(shape):
    weight = torch.randn(*shape, dtype=torch.float64)
    P, L, U = scipy.linalg.lu(weight.numpy())
    loldu = Loldu(weight, LolduConfig(), "layer")
    np.testing.assert_allclose(loldu.B, P @ L, atol=1e-12)
    np.testing.assert_allclose(loldu.z0, np.diag(U), atol=1e-12)
    np.testing.assert_allclose(loldu.A * loldu.z0[:, None], U, atol=1e-12)


@shapes
@pytest.mark.parametrize("r", [1, 3, None])
def test_starts_at_exactly_zero_with_r_trained_numbers(shape, r):
    _, loldu = update(shape, r=r)
    assert not loldu.delta().any()
    assert sum(p.numel() for p in loldu.parameters()) == (min(shape) if r is None else r)


def test_scale_is_alpha_over_the_resolved_rank():
    assert update()[1].scale == 1 / 5
    assert update(r=2, alpha=3.0)[1].scale == 1.5


def test_gradient_is_the_diagonal_of_the_projected_one():
    _, loldu = moved(r=3, alpha=2.0)
    G = torch.randn(7, 5, dtype=torch.float64)
    (loldu.delta() * G).sum().backward()
    expected = 2 / 3 * torch.diagonal(loldu.B.T @ G @ loldu.A.T)
    torch.testing.assert_close(loldu.z.grad, expected, rtol=1e-12, atol=1e-12)


@shapes
def test_rank_of_the_change_is_the_number_of_moved_entries(shape):
    _, loldu = update(shape)
    loldu.z.data[[0, 3]] += 0.5
    assert np.linalg.matrix_rank(loldu.delta().detach().numpy()) == 2


@shapes
def test_doubling_the_whole_diagonal_doubles_the_weight(shape):
    weight, loldu = update(shape, alpha=float(min(shape)))
    loldu.z.data.mul_(2)
    torch.testing.assert_close(weight + loldu.delta(), 2 * weight, rtol=1e-10, atol=1e-12)


@shapes
def test_first_entries_are_the_first_steps_of_the_elimination(shape):
    """With z = 0 and scale 1, r columns of the weight, and r permuted rows, are removed, and the rank falls by r."""
    weight, loldu = update(shape, r=2, alpha=2.0)
    loldu.z.data.zero_()
    residual = (weight + loldu.delta()).detach()
    assert residual[:, :2].abs().max() < 1e-12
    assert residual[loldu.permutation.long()][:2].abs().max() < 1e-12
    assert np.linalg.matrix_rank(residual.numpy(), tol=1e-9) == min(shape) - 2


def test_equals_the_residual_form_of_the_paper():
    weight, loldu = moved(r=3, alpha=1.7)
    sigma, x = 1.7 / 3, torch.randn(4, 5, dtype=torch.float64)
    residual = weight - sigma * loldu.B @ torch.diag(loldu.z0) @ loldu.A
    expected = x @ (residual + sigma * loldu.B @ torch.diag(loldu.z) @ loldu.A).T
    torch.testing.assert_close(x @ weight.T + loldu(x), expected, rtol=1e-12, atol=1e-12)


def test_trained_scaling_multiplies_the_change():
    _, loldu = moved(train_scaling=True)
    before = loldu.delta().detach()
    loldu.gain.data.fill_(3)
    torch.testing.assert_close(loldu.delta(), 3 * before, rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in loldu.parameters()) == 6


@pytest.mark.parametrize("kind", ["zero", "rank 2", "zero column"])
def test_small_pivots_are_inactive(kind):
    weight = torch.randn(7, 2, dtype=torch.float64) @ torch.randn(2, 5, dtype=torch.float64)
    active = 2
    if kind == "zero":
        weight, active = torch.zeros(7, 5, dtype=torch.float64), 0
    elif kind == "zero column":
        weight, active = torch.randn(7, 5, dtype=torch.float64), 4
        weight[:, 1] = 0
    loldu = Loldu(weight, LolduConfig(), "layer")
    loldu.z.data.add_(1)
    assert loldu.facts()["active"] == active
    assert loldu.delta().isfinite().all()
    assert np.linalg.matrix_rank(loldu.delta().detach().numpy(), tol=1e-9) == active
    (loldu.delta() ** 2).sum().backward()
    assert int(loldu.z.grad.count_nonzero()) == active


def test_half_precision_weight_is_factorised_wide():
    weight = torch.randn(7, 5).to(torch.bfloat16)
    loldu, wide = (Loldu(w, LolduConfig(), "layer") for w in (weight, weight.double()))
    assert loldu.z.dtype == loldu.A.dtype == torch.float32
    torch.testing.assert_close(loldu.A.double(), wide.A, rtol=1e-6, atol=1e-6)


def test_only_the_diagonal_and_its_keys_are_saved_and_reloading_gives_the_same_output(tmp_path):
    model = attached()
    for _, layer in adapter_layers(model):
        nn.init.normal_(layer.weight_update["default"].z)
    model.save_pretrained(tmp_path)
    state = peft.utils.load_peft_weights(tmp_path, device="cpu")
    assert {key.rpartition(".")[2] for key in state} == {"z", "z0", "permutation", "checksum"}
    again, x = peft.PeftModel.from_pretrained(net(), tmp_path), torch.randn(3, 6)
    assert torch.equal(again(x), model(x))


def test_diagonal_of_other_weights_is_refused(tmp_path):
    attached().save_pretrained(tmp_path)
    with pytest.raises(ArtefactError, match="other LU factors"):
        peft.PeftModel.from_pretrained(net(seed=1), tmp_path)


def test_other_factors_with_the_same_pivots_are_refused():
    weight, loldu = update()
    saved = loldu.state_dict()
    other = Loldu(weight * torch.linspace(0.9, 1.1, 5), LolduConfig(), "layer")
    saved["permutation"] = other.permutation
    with pytest.raises(ArtefactError, match="other LU factors"):
        other.unpack(saved)


@pytest.mark.parametrize(("options", "message"), [({"r": 6}, "largest r allowed there is 5"), ({"r": 0}, "at least 1")])
def test_wrong_rank_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        update(**options)


def test_initialiser_is_refused():
    with pytest.raises(UserError, match="Loldu defines its own start"):
        update()[1].start_from(None)


def test_a_checkpoint_of_other_factors_is_refused_by_the_task(tmp_path):
    class Holder(Task):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.model = peft.get_peft_model(nn.Sequential(nn.Linear(6, 4)), LolduConfig(target_modules=["0"]))

    one = Holder(0)
    Holder(0).load_trained_state(one.trained_state())
    with pytest.raises(ArtefactError, match="belongs to other LU factors"):
        Holder(1).load_trained_state(one.trained_state())
