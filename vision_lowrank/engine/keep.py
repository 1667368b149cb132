"""Which state of a stage is kept: the last, or the best by a validation metric, with an early stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ArtefactError, UserError, near_miss
from .task import Stage, Task

State = dict[str, Tensor]


def snapshot(task: Task) -> State:
    """A copy of the task's trained state on the CPU, sharing no memory with it."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in task.trained_state().items()}


def restore(task: Task, state: State) -> None:
    """Put a :func:`snapshot` back.

    Raises:
        ArtefactError: its tensors are not those of `task`.
    """
    own = task.trained_state()
    # Copying a tensor into one of another shape may broadcast silently.
    odd = [name for name in own.keys() | state.keys() if _shape(own, name) != _shape(state, name)]
    if odd:
        raise ArtefactError(
            f"the model is not the one the checkpoint was made with: {len(odd)} tensor(s) differ in shape or are "
            f"missing, such as {min(odd)}: use the settings it was made with."
        )
    task.load_trained_state(state)


def check_selection(stage: Stage, task: Task) -> None:
    """Find a selection that cannot work before training, not after.

    Raises:
        UserError: the stage selects by a metric of no validation set.
    """
    sets = task.eval_sets("val") if stage.select else {}
    if stage.select and not any(stage.select.startswith(f"{name}/") for name in sets):
        raise UserError(
            f"stage '{stage.name}' selects by '{stage.select}', which names no validation set."
            f"{near_miss(stage.select.rpartition('/')[0], sets)} Known: {', '.join(sets) or 'none'}."
        )


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


def _shape(state: State, name: str) -> torch.Size | None:
    return state[name].shape if name in state else None
