import math

import peft
import pytest
import torch
from torch import nn

from vision_lowrank.errors import UserError
from vision_lowrank.regularizers import ba_lora
from vision_lowrank.regularizers.ba_lora import (
    BaLora,
    concentration,
    consistency,
    direction_gap,
    diversity,
    in_space,
    negative_entropy,
    top_energy,
)
from vision_lowrank.regularizers.base import Observed


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gradient_of(function, tensor):
    tensor = tensor.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(tensor), tensor)
    return gradient


def seen(logits, teacher=None, scale=1.0, features=None, frozen=None):
    labels = torch.zeros(len(logits), dtype=torch.long)
    return Observed(logits, features, labels, scale, lambda: teacher, lambda: frozen)


def losses(logits, teacher=None, scale=1.0, features=None, frozen=None, **options):
    penalty = BaLora(**options).start()
    penalty.observe(seen(logits, teacher, scale, features, frozen))
    return penalty.extra_losses()


# consistency


def test_consistency_is_the_cross_entropy_less_the_entropy():
    student, teacher, T = rand(6, 4), rand(6, 4), 1.7
    p, q = (torch.exp(z / T) / torch.exp(z / T).sum(-1, keepdim=True) for z in (teacher, student))
    expected = T**2 * (-(p * q.log()).sum(-1) + (p * p.log()).sum(-1)).mean()
    torch.testing.assert_close(consistency(student, teacher, T), expected)


def test_gradient_of_consistency_is_the_difference_of_probabilities():
    student, teacher, T = rand(6, 4), rand(6, 4), 1.7
    expected = T * ((student / T).softmax(-1) - (teacher / T).softmax(-1)) / 6
    torch.testing.assert_close(gradient_of(lambda z: consistency(z, teacher, T), student), expected)


def test_consistency_ignores_shifts_of_a_row_and_is_zero_only_at_the_teacher():
    student, teacher = rand(6, 4), rand(6, 4)
    torch.testing.assert_close(consistency(student + rand(6, 1), teacher, 2.0), consistency(student, teacher, 2.0))
    assert consistency(teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-15)
    assert consistency(student, teacher, 2.0) > 0.01


def test_direction_gap_is_the_mean_square_of_unit_rows_and_ignores_their_scale():
    student, teacher = rand(6, 4), rand(6, 4)
    rows = [(a / a.norm() - b / b.norm()).square().sum() for a, b in zip(student, teacher, strict=True)]
    torch.testing.assert_close(direction_gap(student, teacher), sum(rows) / 24)
    scaled = student * torch.rand(6, 1, dtype=torch.float64).add(0.1)
    torch.testing.assert_close(direction_gap(scaled, teacher), direction_gap(student, teacher))


@pytest.mark.parametrize("term", [consistency, direction_gap])
def test_no_gradient_reaches_the_teacher(term):
    student, teacher = rand(6, 4).requires_grad_(), rand(6, 4).requires_grad_()
    term(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_consistency_stays_finite_where_probabilities_vanish():
    far = torch.tensor([[0.0, 300.0]], dtype=torch.bfloat16)
    (value,) = losses(far, -far, l2=0, l3=0, l1=1.0, temperature=1.0).values()
    assert value.item() == pytest.approx(300, rel=1e-2)


# diversity


def test_diversity_sums_the_covariances_of_different_classes():
    logits = rand(7, 3)
    expected = 0.0
    for i in range(3):
        for j in range(3):
            a, b = (logits[:, c] - logits[:, c].mean() for c in (i, j))
            expected += float(i != j) * (a @ b / 6) ** 2 / 3
    torch.testing.assert_close(diversity(logits), expected)


def test_diversity_is_zero_exactly_where_the_covariance_is_diagonal():
    hadamard = torch.tensor([[1.0, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]], dtype=torch.float64)
    assert diversity(hadamard * torch.tensor([1.0, 2, 3]) + 5) == 0
    hadamard[0, 0] = 2
    assert diversity(hadamard) > 0


def test_diversity_ignores_shifts_and_grows_with_the_fourth_power():
    logits = rand(7, 3)
    torch.testing.assert_close(diversity(logits + rand(3)), diversity(logits))
    torch.testing.assert_close(diversity(3 * logits), 81 * diversity(logits))


def test_one_row_has_no_diversity_and_a_left_over_picture_no_term():
    with pytest.raises(UserError, match="batch of two"):
        diversity(rand(1, 3))
    logits = rand(1, 3).requires_grad_()
    value = losses(logits, l1=0, l3=0)["diversity"]
    value.backward()
    assert value == 0
    assert not logits.grad.any()


def test_diversity_in_cosines_ignores_the_scale_and_standardised_any_scale_of_a_class():
    cosines = torch.rand(7, 3, dtype=torch.float64)
    for scale in (1.0, 100.0):
        torch.testing.assert_close(diversity(in_space(scale * cosines, "cosine", scale)), diversity(cosines))
    correlations = torch.corrcoef(cosines.T)
    expected = (correlations.square().sum() - 3) / 3
    stretched = cosines * torch.tensor([100.0, 30.0, 50.0])
    torch.testing.assert_close(diversity(in_space(stretched, "standardized", None)), expected)
    assert torch.equal(in_space(cosines, "raw", 100.0), cosines)


def test_cosines_of_a_linear_head_are_refused():
    with pytest.raises(UserError, match="dr_space=standardized"):
        losses(rand(4, 3), scale=None, l1=0, l3=0)


# spectral concentration


def test_concentration_is_the_share_of_the_leading_singular_values():
    logits = rand(6, 4)
    sigma = torch.linalg.eigvalsh(logits.T @ logits).sqrt().flip(0)
    torch.testing.assert_close(concentration(logits, 2), -(sigma[0] + sigma[1]) / sigma.sum())
    torch.testing.assert_close(concentration(7 * logits, 2), concentration(logits, 2))
    assert -1 <= concentration(logits, 2) < 0


def test_concentration_does_nothing_where_k_covers_the_spectrum():
    for shape in ((6, 4), (3, 9)):
        logits = rand(*shape)
        assert concentration(logits, min(shape)).item() == pytest.approx(-1)
        assert gradient_of(lambda z: concentration(z, 5), rand(6, 4)).abs().max() < 1e-8


def test_concentration_of_orthonormal_logits_is_k_over_n():
    orthonormal = torch.linalg.qr(rand(9, 6))[0]
    assert concentration(orthonormal, 2).item() == pytest.approx(-2 / 6)


def test_concentration_falls_as_a_low_rank_component_grows():
    logits, component = rand(8, 6), rand(8, 1) @ rand(1, 6)
    values = [concentration(logits + scale * component, 1).item() for scale in (0, 1, 10, 100)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] - 0.3


@pytest.mark.parametrize("k", [1, 2, 3])
def test_gradient_of_concentration(k):
    logits = rand(5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: concentration(z, k), logits)


@pytest.mark.parametrize("term", [diversity, lambda z: concentration(z, 2), lambda z: diversity(standardized(z))])
@pytest.mark.parametrize("case", ["repeated singular values", "zero column", "all zero", "equal rows"])
def test_gradients_are_finite(term, case):
    logits = {
        "repeated singular values": torch.eye(6, 4, dtype=torch.float64),
        "zero column": rand(6, 4) * torch.tensor([1.0, 0, 1, 1]),
        "all zero": torch.zeros(6, 4, dtype=torch.float64),
        "equal rows": rand(1, 4).expand(6, 4),
    }[case]
    gradient = gradient_of(term, logits)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e3


def standardized(logits):
    return in_space(logits, "standardized", None)


def test_a_batch_without_singular_values_goes_without_the_term():
    logits = torch.full((4, 3), math.nan, dtype=torch.float64, requires_grad=True)
    value = concentration(logits, 2)
    value.backward()
    assert value == 0
    assert not logits.grad.any()


# generation forms


def test_negative_entropy_of_the_top_tokens():
    logits = rand(5, 9)
    expected = 0.0
    for row in logits:
        p = row.sort(descending=True).values[:3].softmax(0)
        expected += (p * p.log()).sum() / 5
    torch.testing.assert_close(negative_entropy(logits, 3), expected)
    p = logits.softmax(-1)
    whole = (p * p.log()).sum(-1).mean()
    torch.testing.assert_close(negative_entropy(logits, None), whole)
    torch.testing.assert_close(negative_entropy(logits, 50), whole)


def test_negative_entropy_is_least_at_the_uniform_distribution():
    assert negative_entropy(torch.zeros(2, 8), None).item() == pytest.approx(-math.log(8))
    assert negative_entropy(rand(2, 8), None) > -math.log(8)


def test_top_energy_agrees_with_the_whole_spectrum():
    logits = rand(30, 4) @ rand(4, 40) + 1e-3 * rand(30, 40)

    def exact(z):
        sigma = torch.linalg.svdvals(z)
        return -sigma[:3].sum() / sigma.square().sum().sqrt()

    torch.testing.assert_close(top_energy(logits, 3), exact(logits))
    torch.testing.assert_close(
        gradient_of(lambda z: top_energy(z, 3), logits), gradient_of(exact, logits), rtol=1e-4, atol=1e-8
    )


# the penalty


def test_the_three_terms_carry_the_weights_of_their_version():
    logits, teacher = rand(8, 6), rand(8, 6)
    new = losses(20 * logits, teacher, scale=20.0)
    old = losses(20 * logits, teacher, scale=20.0, version="v1", dr_space="raw")
    assert list(new) == list(old) == ["consistency", "diversity", "spectral"]
    torch.testing.assert_close(new["consistency"], 0.15 * consistency(20 * logits, teacher, 2.0))
    torch.testing.assert_close(new["diversity"], 0.03 * diversity(logits))
    torch.testing.assert_close(new["spectral"], 0.03 * concentration(logits, 5))
    torch.testing.assert_close(old["consistency"], 1e-4 * direction_gap(logits, teacher))
    torch.testing.assert_close(old["diversity"], 3e-4 * diversity(20 * logits))
    torch.testing.assert_close(old["spectral"], 1e-4 * concentration(logits, 3))


def test_given_weights_win():
    logits, teacher = rand(8, 6), rand(8, 6)
    given = losses(logits, teacher, l1=2.0, l2=0, l3=0.5, k=1, temperature=3.0)
    assert list(given) == ["consistency", "spectral"]
    torch.testing.assert_close(given["consistency"], 2 * consistency(logits, teacher, 3.0))
    torch.testing.assert_close(given["spectral"], 0.5 * concentration(logits, 1))


def test_consistency_of_features_is_one_less_their_cosine():
    f, g = rand(5, 7), rand(5, 7)
    cosines = [a @ b / (a.norm() * b.norm()) for a, b in zip(f, g, strict=True)]
    value = losses(rand(5, 3), features=f, frozen=g, consistency="features", l1=1.0, l2=0, l3=0)["consistency"]
    torch.testing.assert_close(value, 1 - sum(cosines) / 5)


def test_weights_rise_linearly_over_the_ramp():
    logits = rand(8, 6)
    penalty, values = BaLora(l1=0, l2=0, ramp=0.2).start(), []
    for step in (0, 5, 10, 20, 100):
        penalty.set_progress(None, step, 100)
        penalty.observe(seen(logits))
        values.append(penalty.extra_losses()["spectral"].item())
    full = 0.03 * concentration(logits, 5).item()
    assert values == pytest.approx([0, full / 4, full / 2, full, full])


def test_what_was_observed_is_used_once_and_never_in_evaluation():
    penalty = BaLora(l1=0).start()
    assert penalty.extra_losses() == {}
    penalty.observe(seen(rand(8, 6)))
    assert len(penalty.extra_losses()) == 2
    assert penalty.extra_losses() == {}
    penalty.observe(seen(rand(8, 6)))
    assert penalty.eval().extra_losses() == {}
    penalty.observe(seen(rand(8, 6)))
    assert penalty.train().extra_losses() == {}


@pytest.mark.parametrize(
    ("options", "asks"), [({}, "logits"), ({"consistency": "features"}, "features"), ({"l1": 0}, None)]
)
def test_the_pretrained_model_is_asked_only_for_consistency(options, asks):
    assert BaLora(**options).teacher == asks

    def refuse():
        raise AssertionError

    penalty = BaLora(**options).start()
    f = rand(4, 5)
    answers = {"teacher": refuse, "teacher_features": refuse}
    if asks:
        answers["teacher" if asks == "logits" else "teacher_features"] = lambda: rand(4, 5 if asks == "features" else 3)
    penalty.observe(Observed(rand(4, 3), f, torch.zeros(4), 1.0, **answers))
    assert ("consistency" in penalty.extra_losses()) == bool(asks)


def test_covariance_and_spectrum_do_not_suffer_from_autocast():
    logits = torch.randn(64, 10) * 10
    expected = losses(logits, l1=0, dr_space="raw")
    with torch.autocast("cpu", torch.bfloat16):
        values = losses(logits, l1=0, dr_space="raw")
    for name, value in values.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=0)


def test_defaults_are_those_of_the_two_texts():
    assert ba_lora.DEFAULTS["v6"] == (0.15, 0.03, 0.03, 5)
    assert ba_lora.DEFAULTS["v1"] == (1e-4, 3e-4, 1e-4, 3)


# the start


def test_peft_s_pissa_switched_off_is_not_the_pretrained_model():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 4))
    x, W = torch.randn(8, 12), net[0].weight.detach().clone()
    teacher = net(x).detach()
    config = peft.LoraConfig(r=3, lora_alpha=3, init_lora_weights="pissa", target_modules=["0"])
    model = peft.get_peft_model(net, config)
    assert consistency(model(x), teacher, 2.0).item() == pytest.approx(0, abs=1e-6)
    with model.disable_adapter():
        wrong = model(x)
    assert consistency(wrong, teacher, 2.0) > 1e-3
    layer = model.base_model.model[0]
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer.base_layer.weight + product, W, rtol=0, atol=1e-5)
