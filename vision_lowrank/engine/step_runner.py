"""The optimiser steps of one stage: read the micro-batches, compute losses and gradients, clip, step.

A step depends on weights, optimiser state and its address (seed, stage, step) only, so none of this holds random state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from ..config.schema import EngineConfig
from ..errors import UserError
from ..optim.base import Steps
from ..trained import TrainedParts, gradient_norm, stepped_by
from .gradient import Closure, MicroBatch
from .runtime import Runtime
from .sampler import BatchPlan, train_loader
from .shard import divided_state, gathered
from .task import Batch, Stage, Task

# fp16 needs some twenty skipped steps to find its loss scale; many more in a row mean that nothing is learnt.
MAX_SKIPPED = 50
REMEDY = "Lower engine.lr, set engine.clip_norm, or look at the samples."


class TrainingDiverged(UserError):
    """The loss, the gradient of many steps in a row or of all, or the result is not a finite number."""


class StepRunner:
    """Takes the steps of a stage, one by one: :meth:`load`, :meth:`gradients`, :meth:`step`, :meth:`finish`.

    Args:
        task: what trains, ready for the stage.
        stage: the stage.
        settings: its settings.
        plan: which samples each step sees.
        steps: how gradients are made and what steps on them.
        runtime: where it runs.

    Attributes:
        optimizer: of the stage.
        closure: losses and gradients of the loaded batch.

    Raises:
        UserError: nothing trains.
    """

    closure: Closure

    def __init__(
        self, task: Task, stage: Stage, settings: EngineConfig, plan: BatchPlan, steps: Steps, runtime: Runtime
    ) -> None:
        self.task, self.stage, self.settings = task, stage, settings
        self.plan, self.steps, self.runtime = plan, steps, runtime
        groups = [group for group in task.parameter_groups() if group["params"]]
        if settings.steps and not groups:
            raise UserError(f"stage '{stage.name}' trains nothing: give it an adapter or a head that needs gradients.")
        self.optimizer: Optimizer = steps.optimizer(groups or [{"params": []}])
        self._scaler = runtime.scaler(settings.precision)
        self._skipped = self._taken = 0
        self._forward = torch.compile(task.training_step) if settings.compile else task

    def start(self, done: int) -> None:
        """Begin the steps after the first `done`: parts of the model may take tensors out of the optimiser."""
        self._parts = TrainedParts(self.task, self.optimizer, self.settings.steps, done)

    def batches(self, done: int) -> Iterator[Sequence[Batch]]:
        """Yield this process's micro-batches of each step after the first `done`."""
        settings = self.settings
        loader = train_loader(
            self.stage.data, self.plan, done, settings.steps, collate=self.stage.collate, workers=settings.workers
        )
        return zip(*[iter(loader)] * settings.accumulate, strict=True)

    def load(self, batches: Sequence[Batch], step: int) -> None:
        """Make the closure of step `step` (0-based)."""
        weights = [self.plan.micro_batch(step, micro)[1] for micro in range(len(batches))]
        self._step = step
        self.closure = Closure(
            self._forward,
            self._parts,
            self.optimizer,
            self.runtime,
            self._scaler,
            self.settings.precision,
            [MicroBatch(self.runtime.to_device(batch), weight) for batch, weight in zip(batches, weights, strict=True)],
            (self.plan.seed, self.plan.stage, step),
        )

    def gradients(self) -> dict[str, float]:
        """Leave the gradients of the loaded batch in ``.grad``; returns its losses.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        losses = self.steps.gradients(self.closure)
        if not math.isfinite(losses["loss"]):
            raise TrainingDiverged(self._diverged(f"the loss is {losses['loss']}"))
        return losses

    def step(self) -> float:
        """Clip and step; returns the gradient's norm before clipping. A gradient that is not finite is skipped.

        Raises:
            TrainingDiverged: too many have been skipped in a row.
        """
        norm = gradient_norm(stepped_by(self.optimizer))
        if finite := bool(norm.isfinite()):
            if self.settings.clip_norm:
                self._parts.clip(self.settings.clip_norm)
            self.optimizer.step()
            self._taken += 1
        self._skipped = 0 if finite else self._skipped + 1
        if self._skipped > MAX_SKIPPED:
            raise TrainingDiverged(self._diverged(f"the gradient has not been finite for {self._skipped} steps"))
        self._parts.after_step(stepped=finite)
        return float(norm)

    def finish(self, done: int) -> None:
        """Tell task and gradient rule that `done` steps of the stage are done."""
        self.task.after_step(done)
        self.steps.after_step(done)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint inside the stage must hold; all processes take part."""
        return {
            "optimizer": gathered(self.optimizer.state_dict()),
            "scaler": self._scaler.state_dict(),
            "rule": self.steps.state_dict(),
            "skipped": self._skipped,
            "taken": self._taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave; call it after :meth:`start`, which takes out what has left."""
        self.optimizer.load_state_dict(divided_state(state["optimizer"], self.optimizer))
        self._scaler.load_state_dict(state["scaler"])
        self.steps.load_state_dict(state["rule"])
        self._skipped, self._taken = state["skipped"], state["taken"]

    def check_result(self) -> None:
        """Look at what the stage leaves.

        Raises:
            TrainingDiverged: none of its steps could be taken, or something that it trained is not finite.
        """
        if self.settings.steps and not self._taken:
            raise TrainingDiverged(
                f"stage '{self.stage.name}': the gradient was finite in none of its steps, so nothing was learnt. "
                + REMEDY
            )
        # Tables that a task keeps beside its parameters may have gaps.
        parameters = dict(self.task.named_parameters())
        state = {name: tensor for name, tensor in self.task.trained_state().items() if name in parameters}
        odd = [name for name, tensor in state.items() if not tensor.isfinite().all()]
        if odd:
            raise TrainingDiverged(
                f"stage '{self.stage.name}': {len(odd)} of {len(state)} trained tensors are not finite at its end, "
                f"such as {min(odd)}. {REMEDY}"
            )

    def _diverged(self, reason: str) -> str:
        samples = ", ".join(str(index) for _, index in self.plan.batch(self._step)[:32])
        return f"stage '{self.stage.name}', step {self._step + 1}: {reason}; samples of the batch: {samples}. " + REMEDY
