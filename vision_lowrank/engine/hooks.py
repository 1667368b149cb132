"""Places in the loop where methods do their own thing: EMA teachers, layer draws, thresholds, freezing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .loop import Engine


class Hook:
    """Base class of hooks; every method may be left out.

    A hook finds what it needs on the engine: ``task``, ``stage``, ``stage_index``, ``settings``, ``step`` (steps done
    in this stage), ``global_step``, ``optimizer``, ``losses`` and ``closure``, which computes losses and gradients of
    the current batch again with the same random numbers.
    """

    def on_stage_start(self, engine: Engine) -> None:
        """Before the first step of a stage, and when it resumes: there the saved state is loaded right after."""

    def after_backward(self, engine: Engine) -> None:
        """Gradients are complete: summed over micro-batches and processes, unscaled, not yet clipped."""

    def after_step(self, engine: Engine) -> None:
        """The optimiser has stepped and the counters count the step."""

    def on_evaluate(self, engine: Engine, split: str, metrics: Mapping[str, float]) -> None:
        """All sets of `split` have been evaluated."""

    def on_stage_end(self, engine: Engine) -> None:
        """The stage's final state (the selected one, if the stage selects) is in the task."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: nested dicts and lists of tensors, numbers, strings and None."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave; tensors arrive on the CPU."""


def collect_states(hooks: Iterable[Hook]) -> list[dict[str, Any]]:
    """State of every hook, in order.

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
    """The first part of `value` that is neither a container nor a tensor, number, string or None; None if all are."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if type(value) in (list, tuple):
        return next((odd for odd in map(_unsafe, value) if odd is not None), None)
    return None if value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor) else value
