"""Which state of a stage is kept: :class:`Last`, :class:`Best` by a metric, or the last within a bound of the start.

A rule hears of every evaluation on validation data (:meth:`Keep.update`), takes a copy of the trained state when it
wants it, and may end the stage early. Which direction of a metric is better, :mod:`vision_lowrank.metrics.names` knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from ..errors import UserError, near_miss
from ..metrics.names import sign

State = dict[str, Tensor]


class Keep:
    """Base of the rules, which are dataclasses. A stage holds one as it is written; the engine works with a fresh copy.

    Attributes:
        metric: full name of the validation metric that decides, such as ``val/accuracy``; None where none does.
        from_start: whether the metric must be known before the first step.
        patience: evaluations in a row without a state worth keeping after which the stage stops; 0 = never.
        value: the metric of the kept state.
        step: the step of the kept state.
        waited: evaluations since then.
        state: the kept state; None means the last one.
    """

    metric: str | None
    from_start: ClassVar[bool] = False
    patience = step = waited = 0
    value = -math.inf
    state: State | None = None

    def fresh(self, patience: int) -> Keep:
        """Return the same rule, which has seen nothing yet."""
        this: Any = self
        rule: Keep = replace(this)
        rule.patience = patience
        return rule

    def wants(self, value: float) -> bool:
        """Tell whether a state of this value of the metric takes the place of the kept one."""
        raise NotImplementedError

    def check(self, stage: str, sets: Collection[str]) -> None:
        """Find a rule that cannot work before training, not after.

        Args:
            stage: name of the stage.
            sets: names of the validation sets.

        Raises:
            UserError: the metric is of none of these.
        """
        if self.metric is not None and not any(self.metric.startswith(f"{name}/") for name in sets):
            raise UserError(
                f"stage '{stage}' keeps a state by '{self.metric}', which names no validation set."
                f"{near_miss(self.metric.rpartition('/')[0], sets)} Known: {', '.join(sets) or 'none'}."
            )

    def update(self, metrics: Mapping[str, float], step: int, take: Callable[[], State]) -> None:
        """Take an evaluation into account.

        Args:
            metrics: of the validation sets, by full name.
            step: optimiser steps done in the stage.
            take: gives a copy of the trained state.

        Raises:
            UserError: the metric is not among `metrics`.
        """
        if self.metric is None:
            return
        if self.metric not in metrics:
            hint = near_miss(self.metric, metrics)
            raise UserError(f"unknown validation metric '{self.metric}'.{hint} Known: {', '.join(sorted(metrics))}.")
        value = metrics[self.metric]
        if self.wants(value):
            self.value, self.step, self.waited, self.state = value, step, 0, take()
        else:
            self.waited += 1

    @property
    def exhausted(self) -> bool:
        """Whether the stage should stop early."""
        return 0 < self.patience <= self.waited

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of a checkpoint; the kept state travels beside them."""
        return {"value": self.value, "step": self.step, "waited": self.waited}

    def load_state_dict(self, numbers: Mapping[str, Any], state: State | None) -> None:
        """Put back what a checkpoint holds."""
        self.value, self.step, self.waited = numbers["value"], numbers["step"], numbers["waited"]
        self.state = state


@dataclass
class Last(Keep):
    """The state after the last step."""

    metric: ClassVar[None] = None


@dataclass
class Best(Keep):
    """The state with the best value of `metric`, the first of several; NaN is no improvement."""

    metric: str

    def __post_init__(self) -> None:
        self.value = -math.inf * sign(self.metric)

    def wants(self, value: float) -> bool:
        """Tell whether it is better than the best so far."""
        return sign(self.metric) * value > sign(self.metric) * self.value


@dataclass
class LastWithin(Keep):
    """The last state whose `metric` is less than a share `bound` worse than it was before the first step.

    With the start's value G_0 of a loss these are the states of G < G_0 (1 + bound), the deviation bound of "Model
    Editing with Canonical Examples" (arXiv 2402.06155). The start itself always qualifies, so the worst outcome is no
    change. Where more is better, states of G > G_0 - bound · abs(G_0) qualify.

    Raises:
        UserError: `bound` is not positive.
    """

    metric: str
    bound: float

    from_start: ClassVar[bool] = True
    start: float | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise UserError(f"LastWithin: bound = {self.bound}: it is a share of the start's value, such as 1e-3.")

    def wants(self, value: float) -> bool:
        """Tell whether it is the start's, or within the bound of it."""
        if self.start is None:
            self.start = value
            return True
        worse = sign(self.metric) * (self.start - value)
        return worse < self.bound * abs(self.start)

    def state_dict(self) -> dict[str, Any]:
        """Return the base's numbers, and the start's value."""
        return super().state_dict() | {"start": self.start}

    def load_state_dict(self, numbers: Mapping[str, Any], state: State | None) -> None:
        """Put back what a checkpoint holds."""
        super().load_state_dict(numbers, state)
        self.start = numbers["start"]
