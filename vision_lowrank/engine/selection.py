"""Which state of a stage is kept: the last, or the best by a validation metric, with an early stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import UserError, near_miss
from ..tasks.base import Task

State = dict[str, Tensor]


def snapshot(task: Task) -> State:
    """A copy of the task's trained state on the CPU, sharing no memory with it."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in task.trained_state().items()}


@dataclass
class Selection:
    """The best state so far and how long ago it was found.

    Attributes:
        metric: name of the validation metric, larger is better; None keeps the last state.
        patience: evaluations without a better value after which a stage stops; 0 = never.
        value: best value so far.
        step: step of the best value.
        waited: evaluations since then.
        state: trained state at that step; None before the first evaluation.
    """

    metric: str | None
    patience: int
    value: float = -math.inf
    step: int = 0
    waited: int = 0
    state: State | None = None

    @property
    def exhausted(self) -> bool:
        """Whether the stage should stop early."""
        return 0 < self.patience <= self.waited

    def update(self, metrics: Mapping[str, float], task: Task, step: int) -> None:
        """Take an evaluation into account; ties and NaN are no improvement.

        Raises:
            UserError: the metric is not among `metrics`.
        """
        if self.metric is None:
            return
        if self.metric not in metrics:
            hint = near_miss(self.metric, metrics)
            raise UserError(f"unknown selection metric '{self.metric}'.{hint} Known: {', '.join(sorted(metrics))}.")
        if metrics[self.metric] > self.value:
            self.value, self.step, self.waited = metrics[self.metric], step, 0
            self.state = snapshot(task)
        else:
            self.waited += 1

    def state_dict(self) -> dict[str, Any]:
        """Counters of a checkpoint; the best state travels beside them."""
        return {"value": self.value, "step": self.step, "waited": self.waited}

    def load_state_dict(self, counters: Mapping[str, Any], state: State | None) -> None:
        """Put back what a checkpoint holds."""
        self.value, self.step, self.waited = counters["value"], counters["step"], counters["waited"]
        self.state = state
