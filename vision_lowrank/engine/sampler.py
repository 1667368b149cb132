"""Which samples a step sees: a closed form of (seed, stage, step), whatever the number of processes.

A data set of n samples is walked in epochs, each a fresh permutation. With batch size B an epoch has ceil(n / B)
batches; the last may be smaller, no sample comes twice in a batch, and a set smaller than B is one batch. Every sample
carries its *position*, the number of samples drawn before it, so an augmentation can depend on (position, index) alone.

W processes with A micro-batches each share a batch of b samples by strides: micro-batch m of process r takes samples
``m W + r, m W + r + W A, ...``. Its weight in the step's loss is its part of b, which keeps the average exact when
the parts are unequal. A part that would be empty computes the batch's first sample with weight 0, so that all
processes take part in the same collective operations; statistics over the batch leave it out (``modes.rows_count``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import DataError, UserError
from .seeding import Stream, derive_seed, seed_host

Item = tuple[int, int]


@lru_cache(maxsize=2)
def permutation(size: int, seed: int, stage: int, epoch: int) -> Tensor:
    """Draw the order of one epoch: (size,) int64."""
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.ORDER, stage, epoch))
    return torch.randperm(size, generator=generator)


@dataclass(frozen=True)
class BatchPlan:
    """The batches of a stage and how processes and micro-batches share them.

    Attributes:
        size: samples in the data set.
        batch_size: samples per optimiser step, over all processes.
        accumulate: micro-batches per optimiser step and process.
        seed: the run's seed.
        stage: index of the stage.
        rank: this process.
        world_size: number of processes.

    Raises:
        DataError: the data set is empty.
        UserError: `batch_size` cannot be divided over processes and micro-batches.
    """

    size: int
    batch_size: int
    accumulate: int
    seed: int
    stage: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.size == 0:
            raise DataError("the stage's data set is empty: give it at least one sample.")
        parts = self.accumulate * self.world_size
        if self.batch_size % parts:
            raise UserError(
                f"batch_size {self.batch_size} cannot be divided over {self.world_size} process(es) x "
                f"{self.accumulate} micro-batch(es): use a multiple of {parts}, "
                f"such as {max(1, self.batch_size // parts) * parts}."
            )

    def batch(self, step: int) -> list[Item]:
        """List all (position, index) pairs of optimiser step `step` (0-based), over all processes."""
        epoch, number = divmod(step, -(-self.size // self.batch_size))
        first = number * self.batch_size
        indices = permutation(self.size, self.seed, self.stage, epoch)[first : first + self.batch_size].tolist()
        start = epoch * self.size + first
        return [(start + offset, index) for offset, index in enumerate(indices)]

    def micro_batch(self, step: int, micro: int) -> tuple[list[Item], float]:
        """Return this process's pairs of micro-batch `micro` and their weight in the loss of the step."""
        batch = self.batch(step)
        share = batch[micro * self.world_size + self.rank :: self.world_size * self.accumulate]
        return share or batch[:1], len(share) / len(batch)


class MicroBatches(Sampler[list[Item]]):
    """The micro-batches of this process for steps `start` to `stop` - 1, in order."""

    def __init__(self, plan: BatchPlan, start: int, stop: int) -> None:
        self.plan, self.start, self.stop = plan, start, stop

    def __iter__(self) -> Iterator[list[Item]]:
        for step in range(self.start, self.stop):
            for micro in range(self.plan.accumulate):
                yield self.plan.micro_batch(step, micro)[0]

    def __len__(self) -> int:
        return (self.stop - self.start) * self.plan.accumulate


class SeededDataset(Dataset):
    """A data set whose random draws depend on (seed, stream, address, position) alone, in any worker process."""

    def __init__(self, data: Dataset, seed: int, stream: Stream, *address: int) -> None:
        self.data, self.seed, self.stream, self.address = data, seed, stream, address

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, item: int | Item) -> Any:
        position = item[0] if isinstance(item, tuple) else item
        seed_host(self.seed, self.stream, *self.address, position)
        return self.data[item]


def train_loader(
    data: Dataset, plan: BatchPlan, start: int, stop: int, *, collate: Callable[[list[Any]], Any] | None, workers: int
) -> DataLoader:
    """Build the loader of this process's micro-batches, steps `start` to `stop` - 1, ``plan.accumulate`` per step."""
    return DataLoader(
        SeededDataset(data, plan.seed, Stream.SAMPLE, plan.stage),
        batch_sampler=MicroBatches(plan, start, stop),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def eval_loader(
    data: Dataset,
    batch_size: int,
    *,
    seed: int,
    rank: int,
    world_size: int,
    collate: Callable[[list[Any]], Any] | None,
    workers: int,
) -> DataLoader:
    """Build a loader of this process's share of `data`, ``rank, rank + world_size, ...``, each sample exactly once."""
    return DataLoader(
        SeededDataset(data, seed, Stream.EVAL_SAMPLE),
        sampler=range(rank, len(data), world_size),  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
