import math
import multiprocessing

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from vision_lowrank.regularizers.contrastive import contrastive_loss as supervised_contrastive
from vision_lowrank.tasks.manipulation.contrast import contrast_diagnostics, contrastive_loss, projector, twin_cosine

# Three pairs in no order.
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])
TWINS = torch.tensor([2, 5, 0, 4, 3, 1])
IN_ORDER = torch.arange(8).roll(4)


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def by_hand(features, labels, twins, tau, weight):
    """`label` as the card writes it, in loops."""
    z = [row / row.norm() for row in features]
    total = 0.0
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        below = sum((weight if j == twins[i] else 1.0) * torch.exp(z[i] @ z[j] / tau) for j in others)
        positives = [j for j in others if labels[j] == labels[i]]
        total -= sum(z[i] @ z[p] / tau - torch.log(below) for p in positives) / len(positives)
    return total / len(z)


@pytest.mark.parametrize("weight", [1.0, 4.0])
@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_label_is_the_definition(tau, weight):
    z = rand(6, 5).requires_grad_()
    value = contrastive_loss(z, LABELS, TWINS, "label", tau, weight)
    expected = by_hand(z, LABELS, TWINS, tau, weight)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z)[0] for loss in (value, expected)))


def test_label_without_a_weight_is_the_supervised_loss():
    z = rand(6, 5)
    assert contrastive_loss(z, LABELS, TWINS) == supervised_contrastive(z, LABELS, 0.2)


def test_pair_is_cross_entropy_on_the_twin():
    z = rand(6, 5)
    unit = F.normalize(z, dim=-1)
    expected = F.cross_entropy((unit @ unit.T / 0.2).fill_diagonal_(-math.inf), TWINS)
    torch.testing.assert_close(contrastive_loss(z, LABELS, TWINS, "pair"), expected)


@pytest.mark.parametrize(("reading", "weight", "others"), [("label", 1, 7), ("pair", 1, 7), ("label", 3, 9)])
def test_equal_features_give_the_logarithm_of_the_number_of_others(reading, weight, others):
    labels = torch.tensor([0] * 4 + [1] * 4)
    value = contrastive_loss(torch.ones(8, 5), labels, IN_ORDER, reading, 0.2, weight)
    assert value.item() == pytest.approx(math.log(others), rel=1e-6)


@pytest.mark.parametrize("reading", ["label", "pair"])
def test_the_order_of_rows_does_not_matter(reading):
    z, order = rand(6, 5), torch.tensor([3, 0, 5, 1, 4, 2])
    place = order.argsort()
    expected = contrastive_loss(z, LABELS, TWINS, reading, 0.2, 2.0)
    again = contrastive_loss(z[order], LABELS[order], place[TWINS[order]], reading, 0.2, 2.0)
    torch.testing.assert_close(again, expected)


def test_equal_twins_please_pair_and_not_label():
    z = rand(4, 5).repeat(2, 1)
    labels = torch.tensor([0] * 4 + [1] * 4)
    pair, label = (contrastive_loss(z, labels, IN_ORDER, reading) for reading in ("pair", "label"))
    assert pair < label


def test_a_row_without_a_twin_is_a_negative_of_others_and_draws_nothing_in_pair():
    z = rand(5, 4)
    twins = torch.tensor([1, 0, 3, 2, 4])
    similarity = (F.normalize(z, dim=-1) @ F.normalize(z, dim=-1).T / 0.2).fill_diagonal_(-math.inf)
    expected = F.cross_entropy(similarity[:4], twins[:4])
    torch.testing.assert_close(contrastive_loss(z, LABELS[:5], twins, "pair"), expected)
    weighted = contrastive_loss(z, torch.tensor([0, 1, 0, 1, 0]), twins, "label", 0.2, 3.0)
    torch.testing.assert_close(weighted, by_hand(z, [0, 1, 0, 1, 0], [1, 0, 3, 2, -1], 0.2, 3.0))


def test_one_pair_has_no_positives_in_label():
    z = rand(2, 4).requires_grad_()
    value = contrastive_loss(z, torch.tensor([0, 1]), torch.tensor([1, 0]), twin_weight=2.0)
    value.backward()
    assert value == 0
    assert not z.grad.any()


def lose_in_one(rank, where, parts, reading, results):
    dist.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=len(parts))
    z, labels, twins = parts[rank]
    z = z.requires_grad_()
    value = contrastive_loss(z, labels, twins, reading, 0.2, 2.0)
    (value / len(parts)).backward()
    results.put((rank, value.item(), z.grad.tolist()))
    dist.destroy_process_group()


@pytest.mark.parametrize("reading", ["label", "pair"])
def test_two_processes_with_unequal_parts_are_one(tmp_path, reading):
    z, labels = rand(6, 3), torch.tensor([0, 0, 1, 1, 0, 1])
    parts = [
        (z[:4].clone(), labels[:4], torch.tensor([2, 3, 0, 1])),
        (z[4:].clone(), labels[4:], torch.tensor([1, 0])),
    ]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (str(tmp_path / "store"), parts, reading, results)
    workers = [context.Process(target=lose_in_one, args=(rank, *arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    answers = sorted(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    z.requires_grad_()
    value = contrastive_loss(z, labels, torch.tensor([2, 3, 0, 1, 5, 4]), reading, 0.2, 2.0)
    value.backward()
    assert [answer[1] for answer in answers] == pytest.approx([value.item()] * 2, rel=1e-12)
    torch.testing.assert_close(torch.tensor(answers[0][2] + answers[1][2], dtype=torch.float64), z.grad)


def test_the_cosine_leaves_out_rows_without_a_twin():
    features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 5.0]])
    assert twin_cosine(features, torch.tensor([1, 0, 2])) == pytest.approx(math.sqrt(0.5))
    assert math.isnan(twin_cosine(features, torch.arange(3)))


def test_too_few_pairs_for_a_probe_end_no_run():
    features = rand(6, 4)
    found = contrast_diagnostics(features, LABELS, TWINS)
    assert math.isnan(found["probe_auc"])
    assert found["twin_cosine"] == twin_cosine(features, TWINS)


def smooth(n):
    """n random smooth pictures (n, 3, 56, 56)."""
    return F.interpolate(torch.rand(n, 3, 4, 4), size=56, mode="bicubic", align_corners=False)


def edited(pictures):
    """The same with a checkerboard of ±0.3 in a random rectangle each."""
    board = 0.3 * (1 - 2 * ((torch.arange(56)[:, None] + torch.arange(56)) % 2))
    result = pictures.clone()
    for picture in result:
        (h, w), (y, x) = torch.randint(14, 36, (2,)).tolist(), torch.randint(0, 20, (2,)).tolist()
        picture[:, y : y + h, x : x + w] += board[:h, :w]
    return result


class Tower(nn.Module):
    """Patches, two hidden layers and a mean; its random start sees the pictures' colours, hardly the checkerboard."""

    def __init__(self):
        super().__init__()
        convs = nn.Conv2d(3, 16, 4, stride=4, bias=False), nn.Conv2d(16, 32, 1, bias=False), nn.Conv2d(32, 32, 1)
        self.net = nn.Sequential(convs[0], nn.Tanh(), convs[1], nn.GELU(), convs[2])

    def forward(self, pictures):
        return self.net(4 * (pictures - 0.5)).mean(dim=(2, 3))


def train_tower(reading):
    """Diagnostics on 64 held-out pairs, before and after 240 steps of 32 pairs."""
    torch.manual_seed(0)
    real = smooth(256)
    fake = edited(real)
    tower, head = Tower(), projector(32)
    labels, twins = torch.tensor([0] * 32 + [1] * 32), torch.arange(64).roll(32)
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=2e-3)

    @torch.no_grad()
    def held_out():
        features = tower(torch.cat([real[192:], fake[192:]]))
        return contrast_diagnostics(features, torch.arange(128) // 64, torch.arange(128).roll(64))

    before = held_out()
    for _ in range(240):
        chosen = torch.randperm(192)[:32]
        z = head(tower(torch.cat([real[chosen], fake[chosen]])))
        loss = contrastive_loss(z, labels, twins, reading)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, held_out()


def test_label_tells_twins_apart():
    before, after = train_tower("label")
    assert after["probe_auc"] > max(0.95, before["probe_auc"])
    assert after["twin_cosine"] < before["twin_cosine"] - 0.2


def test_pair_draws_twins_together():
    before, after = train_tower("pair")
    assert 1 - after["twin_cosine"] < 0.1 * (1 - before["twin_cosine"])


def test_one_row_alone_has_no_loss():
    z = torch.randn(1, 4, requires_grad=True)
    loss = contrastive_loss(z, torch.tensor([1]), torch.tensor([0]), "label", twin_weight=2.0)
    loss.backward()
    assert loss == 0
    assert z.grad.isfinite().all()
