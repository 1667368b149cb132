"""What a gradient rule is: options, and what they do to the steps of one stage.

The engine asks a rule's :class:`Steps` four things, in this order::

    prepare()                  before the optimiser exists: choose what trains
    optimizer(groups)          what steps: AdamW or SGD, unless the rule brings its own
    gradients(closure)         for each step: leave gradients in ``.grad``; the plain rule calls the closure once
    after_step(step)           the optimiser has stepped

``closure()`` computes losses and gradients of the step's whole batch, over all micro-batches and processes, unscaled,
with the same random numbers at every call. Clipping and the check for finite gradients come after ``gradients``, so a
rule that perturbs weights must have put them back by then, even when it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config.schema import EngineConfig, RunConfig, Section

Closure = Callable[[], dict[str, float]]
Groups = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class StepContext:
    """What a rule may know of the stage it works on.

    Attributes:
        model: the task, whose modules hold adapters and heads.
        settings: the stage's engine settings.
        seed: the run's seed.
        index: which stage of the run it is.
    """

    model: nn.Module
    settings: EngineConfig
    seed: int
    index: int


class Rule(Section):
    """Base of all gradient rules; their fields are the keys of a config's ``rule:`` section."""

    def check(self, config: RunConfig) -> None:
        """Refuse what makes no sense together, before anything is loaded.

        Raises:
            UserError: the rule cannot work with another part of `config`; the message says why.
        """

    @property
    def moves_base(self) -> bool:
        """Whether frozen weights are moved while losses and gradients are computed."""
        return False

    def start(self, stage: StepContext) -> Steps:
        """Return what does the work in one stage."""
        raise NotImplementedError


class Steps:
    """The steps of one stage; this base is plain training."""

    def __init__(self, stage: StepContext) -> None:
        self.stage = stage

    def prepare(self) -> None:
        """Choose what trains.

        Raises:
            UserError: the model has nothing that the rule works on.
        """

    def optimizer(self, groups: Groups) -> Optimizer:
        """Build what steps on `groups`, the parameters that require gradients by then."""
        return make_optimizer(groups, self.stage.settings)

    def gradients(self, closure: Closure) -> dict[str, float]:
        """Leave the step's gradients in ``.grad``; returns the losses, and numbers of its own worth logging."""
        return closure()

    def after_step(self, step: int) -> None:
        """Act when `step` steps are done."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: nested dicts and lists of tensors, numbers, strings and None."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave; tensors arrive on the CPU."""


def make_optimizer(groups: Groups, settings: EngineConfig) -> Optimizer:
    """Build ``engine.optimizer`` with its options."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            list(groups),
            settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
    return torch.optim.AdamW(list(groups), settings.lr, settings.betas, weight_decay=settings.weight_decay)


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Compute the norm of all `tensors` together, float32 or wider."""
    return torch.nn.utils.get_total_norm([tensor.float() if tensor.itemsize < 4 else tensor for tensor in tensors])
