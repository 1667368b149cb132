import pytest
import torch
from fixtures.tiny_tasks import Points

from vision_lowrank.engine.sampler import BatchPlan, SeededDataset, eval_loader, train_loader
from vision_lowrank.engine.seeding import Stream, derive_seed
from vision_lowrank.errors import DataError, UserError


def plan(size, batch_size=4, accumulate=1, **options):
    return BatchPlan(size, batch_size, accumulate, **{"seed": 1, "stage": 0} | options)


@pytest.mark.parametrize("size", [3, 4, 11, 12])
def test_an_epoch_shows_every_sample_once_and_positions_count_all_samples(size):
    steps = -(-size // 4)
    batches = [plan(size).batch(step) for step in range(3 * steps)]
    for epoch in range(3):
        samples = [item for batch in batches[epoch * steps : (epoch + 1) * steps] for item in batch]
        assert sorted(index for _, index in samples) == list(range(size))
        assert [position for position, _ in samples] == list(range(epoch * size, (epoch + 1) * size))
    assert all(len({index for _, index in batch}) == len(batch) for batch in batches)


def test_a_set_smaller_than_the_batch_is_one_batch():
    """CLIP-LoRA on EuroSAT with one shot: ten pictures, batches of ten."""
    assert [len(plan(10, 32).batch(step)) for step in range(3)] == [10, 10, 10]


def test_epochs_stages_and_seeds_have_their_own_order():
    orders = {
        tuple(index for _, index in plan(50, 50, **options).batch(step))
        for options in ({}, {"seed": 2}, {"stage": 1})
        for step in (0, 1)
    }
    assert len(orders) == 6


@pytest.mark.parametrize(("size", "world", "accumulate"), [(16, 2, 2), (11, 4, 2), (9, 2, 4), (3, 2, 4), (1, 8, 1)])
def test_processes_and_micro_batches_partition_the_batch(size, world, accumulate):
    plans = [plan(size, 8, accumulate, rank=rank, world_size=world) for rank in range(world)]
    for step in range(3):
        shares = [each.micro_batch(step, micro) for each in plans for micro in range(accumulate)]
        assert sum(weight for _, weight in shares) == pytest.approx(1.0)
        counted = [item for items, weight in shares if weight for item in items]
        assert sorted(counted) == sorted(plans[0].batch(step))
        assert all(items for items, _ in shares)
        for items, weight in shares:
            assert weight in (0, len(items) / len(counted))


def test_a_batch_that_cannot_be_divided_is_refused_with_a_remedy():
    with pytest.raises(UserError, match=r"batch_size 10 .* 2 process\(es\) x 3 micro-batch\(es\): .*of 6, such as 6"):
        plan(100, 10, 3, world_size=2)
    with pytest.raises(DataError, match="empty"):
        plan(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_can_start_anywhere_and_draws_the_same_noise(workers):
    data, the_plan = Points(11, jitter=1.0), plan(11, 4, 2)
    whole = list(train_loader(data, the_plan, 0, 6, collate=None, workers=0))
    tail = list(train_loader(data, the_plan, 4, 6, collate=None, workers=workers))
    assert (len(whole), len(tail)) == (12, 4)
    for one, other in zip(whole[8:], tail, strict=True):
        assert torch.equal(one["x"], other["x"])
        assert torch.equal(one["index"], other["index"])
    assert not torch.equal(whole[0]["x"], data.x[whole[0]["index"]])


def test_the_same_sample_gets_fresh_noise_in_the_next_epoch():
    data = SeededDataset(Points(11, jitter=1.0), 1, Stream.SAMPLE, 0)
    assert torch.equal(data[3, 5]["x"], data[3, 5]["x"])
    assert not torch.equal(data[3, 5]["x"], data[14, 5]["x"])


@pytest.mark.parametrize(("size", "world"), [(7, 1), (7, 2), (2, 3)])
def test_evaluation_shares_hold_every_sample_once(size, world):
    loaders = [
        eval_loader(Points(size), 3, seed=1, rank=rank, world_size=world, collate=None, workers=0)
        for rank in range(world)
    ]
    assert sorted(int(i) for loader in loaders for batch in loader for i in batch["index"]) == list(range(size))


def test_seeds_depend_on_every_part_of_the_address():
    addresses = [(s, stream, a, b) for s in (0, 1) for stream in Stream for a in range(3) for b in range(3)]
    seeds = {derive_seed(s, stream, a, b) for s, stream, a, b in addresses}
    assert len(seeds) == len(addresses)
    assert all(0 <= seed < 2**63 for seed in seeds)
