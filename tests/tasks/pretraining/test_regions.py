"""The matching loss against a loop, and what counts as a hit."""

import math

import pytest
import torch
import torch.nn.functional as F

from vision_lowrank.tasks.pretraining.regions import hits, matching_loss, place_weights

GRID, CELL = (3, 4), 8


def test_weights_of_places_are_bilinear():
    places = torch.tensor([[12.0, 12.0], [16.0, 12.0], [18.0, 14.0], [1.0, 1.0], [31.0, 23.0]], dtype=torch.float64)
    cells, weights = place_weights(places, GRID, CELL)
    dense = torch.zeros(5, 12, dtype=torch.float64).scatter_add(1, cells, weights)
    torch.testing.assert_close(dense.sum(dim=1), torch.ones(5, dtype=torch.float64))
    assert dense[0].nonzero().flatten().tolist() == [5]  # a centre: its own cell alone
    assert dense[1, [5, 6]].tolist() == [0.5, 0.5]  # half way between two
    assert dense[2, [5, 6, 9, 10]].tolist() == pytest.approx([0.25 * 0.75, 0.75 * 0.75, 0.25 * 0.25, 0.75 * 0.25])
    assert dense[3].nonzero().flatten().tolist() == [0]  # in the corner: the corner's cell
    assert dense[4].nonzero().flatten().tolist() == [11]


def test_the_loss_against_a_loop():
    torch.manual_seed(0)
    first, second = torch.randn(2, 12, 5, dtype=torch.float64), torch.randn(2, 12, 5, dtype=torch.float64)
    places = torch.rand(2, 12, 2, dtype=torch.float64) * torch.tensor([32.0, 24.0])
    places[0, :7] = math.nan
    total, count = 0.0, 0
    keys = F.normalize(second.float(), dim=-1).flatten(0, 1)
    for picture in range(2):
        for cell in range(12):
            if places[picture, cell].isnan().any():
                continue
            query = F.normalize(first[picture, cell].float(), dim=-1)
            likely = [float(query @ key) / 0.2 for key in keys]
            norm = math.log(sum(math.exp(value) for value in likely))
            x, y = (float(value) / CELL - 0.5 for value in places[picture, cell])
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    weight = (1 - abs(x - column)) * (1 - abs(y - row))
                    number = min(max(row, 0), 2) * 4 + min(max(column, 0), 3)
                    total -= weight * (likely[picture * 12 + number] - norm)
            count += 1
    found = matching_loss(first, second, places, GRID, CELL, 0.2, cells=12)
    assert float(found) == pytest.approx(total / count, rel=1e-5)


def test_a_pair_without_matching_cells_still_trains():
    first, second = (torch.randn(1, 12, 5, requires_grad=True) for _ in range(2))
    loss = matching_loss(first, second, torch.full((1, 12, 2), math.nan), GRID, CELL, 0.1, 4)
    loss.backward()
    assert float(loss) == 0
    assert not first.grad.any()


def test_no_more_cells_are_looked_at_than_asked(monkeypatch):
    torch.manual_seed(1)
    first, second = torch.randn(2, 12, 5), torch.randn(2, 12, 5)
    places = torch.rand(2, 12, 2) * 20
    seen = []
    real = place_weights

    def counting(found, grid, cell):
        seen.append(len(found))
        return real(found, grid, cell)

    monkeypatch.setattr("vision_lowrank.tasks.pretraining.regions.place_weights", counting)
    matching_loss(first, second, places, GRID, CELL, 0.1, cells=3)
    assert seen == [6]


def test_hits_are_cells_whose_best_match_is_near():
    second = torch.eye(12)[None]
    first = torch.eye(12)[[0, 5, 11, 3, 4, 4, 4, 4, 4, 4, 4, 4]][None]
    places = torch.full((1, 12, 2), math.nan)
    places[0, 0] = torch.tensor([4.0, 4.0])  # cell 0, found
    places[0, 1] = torch.tensor([12.0, 19.0])  # a cell below where it was found: 7 pixels away
    places[0, 2] = torch.tensor([4.0, 4.0])  # found at the other end
    assert hits(first, second, places, GRID, CELL).tolist() == pytest.approx([2 / 3])
