r"""Losses and gradients of one optimiser step as a function that can be called again.

For a batch of b samples in parts of b_1 .. b_K samples (micro-batches of all processes), with L_i the mean loss of part
i and E_i the losses that trained parts add themselves,

    L = sum_i (b_i / b) (L_i + E_i)

which is the loss of the whole batch when L is a mean over samples, whatever the parts. Each part starts from random
numbers of its own address, so a second call gives the same loss for the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from ..modes import rows_counting
from ..trained import TrainedParts, stepped_by
from .runtime import Runtime
from .seeding import Stream, seed_everything
from .task import Batch


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of this process: its batch on the device and its part of the step's samples, 0 for a filler."""

    batch: Batch
    weight: float


@dataclass(frozen=True)
class Closure:
    """Computes the losses of one step and leaves its gradients in ``.grad``: summed over processes and unscaled.

    Attributes:
        forward: batch -> losses, ``loss`` among them.
        trained: parts of the model whose losses are added to ``loss``.
        optimizer: its parameters get the gradients.
        runtime: where it runs.
        scaler: loss scaling; the identity except in fp16.
        precision: autocast type.
        parts: this process's micro-batches.
        address: seed, stage and step.
    """

    forward: Callable[[Batch], dict[str, Tensor]]
    trained: TrainedParts
    optimizer: Optimizer
    runtime: Runtime
    scaler: GradScaler
    precision: str
    parts: Sequence[MicroBatch]
    address: tuple[int, int, int]

    def __call__(self) -> dict[str, float]:
        """Compute losses by name, averaged over the step's samples; ``loss`` includes what trained parts add."""
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        seed, stage, step = self.address
        for micro, part in enumerate(self.parts):
            seed_everything(seed, Stream.STEP, stage, step, micro, self.runtime.rank)
            with self.runtime.autocast(self.precision), rows_counting(part.weight > 0):
                losses = self._losses(part.batch)
            self.scaler.scale(losses["loss"] * part.weight).backward()
            for name, value in losses.items():
                value = value.detach() * part.weight
                totals[name] = totals[name] + value if name in totals else value
        self.runtime.sum_gradients(stepped_by(self.optimizer))
        # Unscaling here, not in the step, gives gradient rules true gradients and lets the closure be called again.
        self.scaler.unscale_(self.optimizer)
        self.scaler.update()
        return self.runtime.sum_values(totals)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        losses = dict(self.forward(batch))
        extra = self.trained.losses()
        if extra:
            losses = losses | extra | {"loss": losses["loss"] + sum(extra.values())}
        return losses
