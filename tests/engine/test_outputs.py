"""Outputs of samples, whatever their shape, in the order of the set."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from fixtures.tiny_tasks import Regression, settings
from torch.utils.data import Dataset

from vision_lowrank.engine import Engine
from vision_lowrank.engine.outputs import in_order, join, to_host
from vision_lowrank.engine.task import EvalSet


def boxes(index):
    """As many boxes as the index of their picture, modulo 3: some pictures have none."""
    return torch.full((index % 3, 4), float(index))


def share(indices, batch_size=2):
    """What one process has of the samples `indices`."""
    batches = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    return join([
        {"index": torch.tensor(batch), "boxes": [boxes(index) for index in batch], "name": [f"p{i}" for i in batch]}
        for batch in batches
    ])  # fmt: skip


@pytest.mark.parametrize(("size", "world"), [(7, 1), (7, 2), (8, 2), (2, 3), (10, 3)])
def test_shares_of_processes_come_into_the_order_of_the_set_without_padding(size, world):
    outputs = in_order([share(list(range(rank, size, world))) for rank in range(world)], size)
    assert outputs["index"].tolist() == list(range(size))
    assert outputs["name"] == [f"p{index}" for index in range(size)]
    assert [len(each) for each in outputs["boxes"]] == [index % 3 for index in range(size)]
    assert all(torch.equal(each, boxes(index)) for index, each in enumerate(outputs["boxes"]))


def test_too_few_values_are_named():
    with pytest.raises(ValueError, match="eval_step gave 2 values of 'boxes' for 3 samples"):
        in_order([{"index": torch.arange(3), "boxes": [boxes(1), boxes(2)]}], 3)


Pair = namedtuple("Pair", "boxes score")


@dataclass(frozen=True)
class Found:
    boxes: torch.Tensor
    name: str


def test_half_precision_becomes_float32_however_deep():
    half = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    value = to_host(
        {"a": [half, {"b": half}], "c": (half, "text"), "d": Pair(half, 0.5), "e": Found(half, "x"), "f": 3}
    )
    tensors = [value["a"][0], value["a"][1]["b"], value["c"][0], value["d"].boxes, value["e"].boxes]
    assert {each.dtype for each in tensors} == {torch.float32}
    assert not any(each.requires_grad for each in tensors)
    assert (value["c"][1], value["d"].score, value["e"].name, value["f"]) == ("text", 0.5, "x", 3)
    assert to_host(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


class Pictures(Dataset):
    """Pictures of different sizes, which torch cannot stack."""

    def __len__(self):
        return 5

    def __getitem__(self, item):
        return {"image": torch.full((item + 1, 2), float(item)), "index": item}


class Ragged(Regression):
    """Gives a list per batch, and notes the sizes of batches."""

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size, self.sizes = batch_size, []

    def eval_sets(self, split):
        rows = {"image": list, "index": torch.tensor}

        def collate(samples):
            return {key: join([sample[key] for sample in samples]) for key, join in rows.items()}

        return {"test": EvalSet(Pictures(), collate, self.batch_size)}

    def eval_step(self, batch):
        self.sizes.append(len(batch["image"]))
        return {"image": [image + 1 for image in batch["image"]], "index": batch["index"]}

    def metrics(self, set_name, outputs):
        return {"rows": sum(len(image) for image in outputs["image"])}


@pytest.mark.parametrize(("batch_size", "sizes"), [(None, [3, 2]), (2, [2, 2, 1])])
def test_a_set_brings_its_own_collate_and_batch_size(batch_size, sizes, tmp_path):
    task = Ragged(batch_size)
    engine = Engine(settings(eval_batch_size=3), task, tmp_path, seed=1)
    assert engine.evaluate("test") == {"test/rows": 15}
    assert task.sizes == sizes
    found = engine.outputs["test"]["image"]
    assert [each.shape for each in found] == [(index + 1, 2) for index in range(5)]
    assert all((each == index + 1).all() for index, each in enumerate(found))
