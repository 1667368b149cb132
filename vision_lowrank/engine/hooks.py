"""Places in the loop where methods and users do their own thing: EMA teachers, layer draws, adapters kept on the way.

A config names hooks by ``hooks: [{type: …}]``; what it names is a :class:`HookSection`, registered with
``@register("hook", name, summary=…)``, here or by another package's entry point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..config.schema import EngineConfig, RunConfig, Section
from .task import Outputs, Stage, Task


class Loop:
    """What a hook finds on the engine.

    Attributes:
        task: what trains.
        folder: where the seed's results go.
        seed: of everything random in the run.
        is_main: whether this process writes files.
        settings: of the current stage, overrides included.
        stage: the current stage; None before the first.
        stage_index: its index.
        step: optimiser steps done in this stage.
        global_step: optimiser steps done in all stages.
        optimizer: of the current stage.
        closure: computes losses and gradients of the current batch again, with the same random numbers.
        losses: of the last step.
        metrics: of the last evaluation.
        outputs: by set, of its last evaluation, on the CPU in the order of the data set.
    """

    task: Task
    folder: Path
    seed: int
    is_main: bool
    settings: EngineConfig
    stage: Stage | None
    stage_index: int
    step: int
    global_step: int
    optimizer: Optimizer
    closure: Callable[[], dict[str, float]]
    losses: dict[str, float]
    metrics: dict[str, float]
    outputs: dict[str, Outputs]


class Hook:
    """Base class of hooks; every method may be left out."""

    def on_stage_start(self, engine: Loop) -> None:
        """Act before a stage's first step, and when it resumes: there the saved state is loaded right after."""

    def after_backward(self, engine: Loop) -> None:
        """Act on complete gradients: summed over micro-batches and processes, unscaled, not yet clipped."""

    def after_step(self, engine: Loop) -> None:
        """Act when the optimiser has stepped and the counters count the step."""

    def on_evaluate(self, engine: Loop, split: str, metrics: Mapping[str, float]) -> None:
        """Act when all sets of `split` have been evaluated."""

    def on_stage_end(self, engine: Loop) -> None:
        """Act when the stage's final state (the selected one, if the stage selects) is in the task."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: nested dicts and lists of tensors, numbers, strings and None."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave; tensors arrive on the CPU."""


class HookSection(Section):
    """Base of the options of hooks that a config can name."""

    def check(self, config: RunConfig) -> None:
        """Refuse what makes no sense together, before anything is loaded.

        Raises:
            UserError: the hook cannot work with another part of `config`; the message says why.
        """

    def start(self) -> Hook:
        """Return what does the work in the run of one seed."""
        raise NotImplementedError


def collect_states(hooks: Iterable[Hook]) -> list[dict[str, Any]]:
    """Collect the state of every hook, in order.

    Raises:
        TypeError: a state holds something that could not be loaded again without unpickling.
    """
    states = [hook.state_dict() for hook in hooks]
    for hook, state in zip(hooks, states, strict=True):
        odd = _unsafe(state)
        if odd is not None:
            name, kind = type(hook).__name__, type(odd).__name__
            raise TypeError(f"the state of hook {name} holds a {kind}: keep tensors, numbers and strings.")
    return states


def _unsafe(value: Any) -> Any:
    """Find the first part of `value` that is no container, tensor, number, string or None; None if there is none."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if type(value) in (list, tuple):
        return next((odd for odd in map(_unsafe, value) if odd is not None), None)
    return None if value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor) else value
