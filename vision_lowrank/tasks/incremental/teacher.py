"""The asynchronous teacher, and other copies of a student that stay behind, at the cost of what moved since.

Paper: CoACT, "Consistency-Guided Asynchronous Contrastive Tuning for Few-Shot Class-Incremental Tuning of Foundation
Models", arXiv 2405.16625. With θ_S the student's base weights, adapter not counted, and m = 0.999, once per step::

    θ_T <- m θ_T + (1 - m) θ_S

The teacher has no adapter. So it stays the pretrained network exactly, until controlled fine-tuning
(:mod:`.unfreeze`) moves base weights; then it follows them slowly.

A copy holds only the tensors that it is told to hold: those that may come to differ from the student's. All others are
the student's own. It is run by the student's own modules, with the held tensors in place of theirs, in evaluation mode
and without gradients; without controlled fine-tuning a teacher takes no memory at all.

The paper's further copies are of the same kind: the pretrained model is a ``FrozenCopy()`` that holds what controlled
fine-tuning is about to move (``Parts.encoder``); the base model S_0 a ``FrozenCopy(adapters=True)`` that holds what the
incremental sessions are about to move (``Parts.pet``); S_0's teacher is ``copy.deepcopy(teacher)``.

In the reference code the update is a side effect of every forward pass, before the teacher's own, and so reaches
frozen copies too. Here it is a call of its own, to be made after each optimiser step, which gives the same sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...backbones.adapted import backbone_of, without_adapter
from ...modes import preserved
from ...trained import TrainedPart


class FrozenCopy(TrainedPart):
    """A student as it was. What it holds are buffers: they move and are checkpointed with the task, and never train.

    Args:
        adapters: keep the student's adapter too; otherwise the copy has none.
    """

    checkpoint_whole: ClassVar[bool] = True

    def __init__(self, adapters: bool = False) -> None:
        super().__init__()
        self.adapters = adapters

    def hold(self, parameters: Mapping[str, Tensor]) -> None:
        """Take copies of those `parameters` that are not held yet; what is not held must stay frozen from now on.

        Call it before the first step that moves them and, so that a checkpoint finds its place, whenever the stage
        begins or resumes.

        Args:
            parameters: of the student, by name inside the backbone, such as ``Parts.encoder``.
        """
        for name, parameter in parameters.items():
            if _key(name) not in self._buffers:
                self.register_buffer(_key(name), parameter.detach().clone())

    @property
    def held(self) -> dict[str, Tensor]:
        """The tensors held, by name inside the backbone."""
        return {_name(key): tensor for key, tensor in self._buffers.items() if tensor is not None}

    def features(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Compute the copy's image features: (B, 3, H, W) -> (B, d), not normalised, without gradient.

        Args:
            model: the student that this is a copy of.
            pixels: a batch of pictures.
        """
        with preserved(model), nullcontext() if self.adapters else without_adapter(model), torch.no_grad():
            model.eval()
            return functional_call(backbone_of(model), self.held, (pixels,))


class AsynchronousTeacher(FrozenCopy):
    """An exponential moving average of the student's base weights.

    Args:
        m: share of the teacher that stays in one update.
    """

    def __init__(self, m: float = 0.999) -> None:
        super().__init__()
        self.m = m

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move one step towards the student: θ_T <- m θ_T + (1 - m) θ_S."""
        student = backbone_of(model)
        for name, tensor in self.held.items():
            tensor.lerp_(student.get_parameter(name), 1 - self.m)  # where both are equal nothing changes, to the bit


def _key(name: str) -> str:
    """Return the name of a buffer: torch does not allow dots in one."""
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
