import math

import pytest
import torch
import torch.nn.functional as F

from vision_lowrank.tasks.incremental.losses import asynchronous_contrastive, logit_distance

LABELS = torch.tensor([0, 1, 0, 2])


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def by_the_card(views, labels, tau):
    """The definition as loops: 1/N over all rows, 1/max(|P|, 1)."""
    z = [row / row.norm() for view in views for row in view]
    y = [int(label) for _ in views for label in labels]
    total = 0.0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if y[p] == y[i]]
        top = max(z[i] @ z[a] / tau for a in others)
        below = top + torch.log(sum(torch.exp(z[i] @ z[a] / tau - top) for a in others))
        total += sum(z[i] @ z[p] / tau - below for p in positives) / max(len(positives), 1)
    return -total / len(z)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_it_is_the_definition(views, tau):
    sets = [rand(4, 5) for _ in range(views)]
    value = asynchronous_contrastive(*sets, labels=LABELS, tau=tau)
    torch.testing.assert_close(value, by_the_card(sets, LABELS, tau))
    if tau == 0.07:
        torch.testing.assert_close(asynchronous_contrastive(*sets, labels=LABELS), value)


def test_with_distinct_labels_two_views_give_nt_xent():
    one, two = rand(4, 5), rand(4, 5)
    z = F.normalize(torch.cat([one, two]), dim=-1)
    similarity = (z @ z.T / 0.07).fill_diagonal_(-math.inf)
    expected = F.cross_entropy(similarity, torch.arange(8).roll(4))
    torch.testing.assert_close(asynchronous_contrastive(one, two, labels=torch.arange(4)), expected)


def test_one_class_of_identical_vectors_gives_the_logarithm_of_the_others():
    same = torch.ones(3, 5, dtype=torch.float64)
    value = asynchronous_contrastive(same, same, same, labels=torch.zeros(3, dtype=torch.long))
    assert value.item() == pytest.approx(math.log(9 - 1))


def test_the_order_of_pictures_and_the_length_of_features_do_not_matter():
    one, two, order = rand(4, 5), rand(4, 5), torch.tensor([2, 0, 3, 1])
    expected = asynchronous_contrastive(one, two, labels=LABELS)
    torch.testing.assert_close(asynchronous_contrastive(one[order], 3 * two[order], labels=LABELS[order]), expected)


def test_only_the_student_receives_a_gradient():
    student, teacher, other = (rand(4, 5).requires_grad_() for _ in range(3))
    asynchronous_contrastive(student, teacher, other, labels=LABELS).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert other.grad is None


def test_its_gradient_is_that_of_finite_differences():
    teacher = rand(3, 4)
    labels = torch.tensor([0, 1, 0])
    student = rand(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: asynchronous_contrastive(x, teacher, labels=labels), student)


def test_reduced_precision_is_computed_in_full():
    one, two = rand(4, 5).bfloat16(), rand(4, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = asynchronous_contrastive(one, two, labels=LABELS)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, asynchronous_contrastive(one.float(), two.float(), labels=LABELS))


def test_the_distance_of_equal_logits_is_nothing_and_the_base_model_gets_no_gradient():
    student = rand(3, 4).requires_grad_()
    base = student.detach().clone().requires_grad_()
    assert logit_distance(student, base) == 0
    logit_distance(student + 1, base).backward()
    assert base.grad is None
    torch.testing.assert_close(student.grad, torch.full_like(student, 2 / 12))


def test_the_distance_is_taken_over_seen_columns_or_over_all():
    student, base = rand(3, 4), rand(3, 4)
    seen = torch.tensor([True, False, True, False])
    chosen = sum((student[b, c] - base[b, c]) ** 2 for b in range(3) for c in (0, 2)) / 6
    torch.testing.assert_close(logit_distance(student, base, seen), chosen)
    every = sum((student[b, c] - base[b, c]) ** 2 for b in range(3) for c in range(4)) / 12
    torch.testing.assert_close(logit_distance(student, base), every)


def test_columns_that_the_head_grew_since_are_left_out():
    student, base = rand(3, 6), rand(3, 4)
    torch.testing.assert_close(logit_distance(student, base), logit_distance(student[:, :4], base))
    seen = torch.tensor([True, True, True, False])
    torch.testing.assert_close(logit_distance(student, base, seen), logit_distance(student[:, :3], base[:, :3]))
