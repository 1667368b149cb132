import pytest
import torch

from vision_lowrank.tasks.classification.growth import new_classes, old_classes


class Dots(torch.nn.Module):
    """A head whose rows are set by hand."""

    def __init__(self, rows):
        super().__init__()
        self.prototypes = torch.nn.Parameter(torch.tensor(rows))

    def forward(self, model, h):
        return h @ self.prototypes.T


def test_old_classes_lose_what_a_new_row_takes():
    head = Dots([[1.0, 0.0], [0.0, 1.0], [2.0, -9.0], [-9.0, 1.5]])
    h = torch.tensor([[1.0, 0.0], [1.0, 0.9], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    told = old_classes(None, head, ["a", "b", "c", "d"], 2, (h, labels))
    # among a and b: a a a b b; among all: c a c d d
    assert (told.classes, told.pictures, told.taken) == (2, 5, 4)
    assert told.before == pytest.approx(4 / 5)
    assert told.after == pytest.approx(1 / 5)
    assert [(loss.name, loss.by) for loss in told.worst] == [("b", "d"), ("a", "c")]
    assert [(loss.before, loss.after) for loss in told.worst] == [(pytest.approx(2 / 3), 0), (1, 0.5)]


def test_leave_one_out_uses_the_row_of_the_others():
    h = torch.tensor([[4.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
    head = Dots([[1.0, 0.0], (h.mean(dim=0)).tolist()])
    row = head.prototypes.detach().clone()
    told = new_classes(None, head, ["new"], h, torch.ones(3, dtype=torch.long), 1)[0]
    assert told.accuracy == 1  # 4/3 of the first row's feature is the new row's
    assert told.left_out == pytest.approx(2 / 3)  # without it, nothing of it is left
    assert torch.equal(head.prototypes, row)
    alone = new_classes(None, head, ["new"], h[:1], torch.ones(1, dtype=torch.long), 1)[0]
    assert alone.left_out is None
