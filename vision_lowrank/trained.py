"""What parts of a model may ask of whoever trains them, and what a training loop does for them.

Some parts need more of a loop than ``loss.backward()`` and ``optimizer.step()``: SoRA shrinks its gates after each
step, LaMDA freezes columns as training goes on, KaSA, MixLoRA and LoFiT add penalties, several keep weight decay away
from a tensor. Each is a :class:`TrainedPart` and says so. A loop serves the parts of any model, without knowing them::

    optimizer = torch.optim.AdamW(parameter_groups(model), lr)
    parts = TrainedParts(model, optimizer, steps)
    for batch in batches:
        loss = task_loss(model, batch) + sum(parts.losses().values())
        optimizer.zero_grad()
        loss.backward()
        parts.clip(1.0)
        optimizer.step()
        parts.after_step()

The engine does exactly this. Methods that train in several phases repeat it for each:
:mod:`vision_lowrank.attachment.phases`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import UserError


class TrainedPart(nn.Module):
    """A module that may ask something of the loop that trains it; what it leaves out, it does not ask for.

    Attributes:
        no_decay: names of own parameters that weight decay must not touch.
        no_clip: names of own parameters that are left out of gradient clipping.
        checkpoint_whole: checkpoints hold its buffers too, and its parameters whether they train or not: for tensors
            that another machine might compute differently.
        served: whether a loop does what the part asks: set by :class:`TrainedParts`.
    """

    no_decay: ClassVar[tuple[str, ...]] = ()
    no_clip: ClassVar[tuple[str, ...]] = ()
    checkpoint_whole: ClassVar[bool] = False
    served: bool = False

    def extra_losses(self) -> dict[str, Tensor]:
        """Return scalars by name, weights included, that are added to the loss of each batch after its forward pass."""
        return {}

    def proximal_step(self, lr: float) -> None:
        """Take an own step after each optimiser step that gave own parameters a new value, with learning rate `lr`."""

    def set_progress(self, optimizer: Optimizer, step: int, steps: int) -> None:
        """Take note that `step` of `steps` are done: at the start of a phase, where it resumes, and after each step.

        Args:
            optimizer: what steps; parameters may be taken out of it.
            step: optimiser steps done in this phase.
            steps: its length.
        """

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Check own tensors of a checkpoint before they are loaded.

        Raises:
            ArtefactError: they belong to another model.
        """

    def remind(self) -> None:
        """Warn in the forward pass of parts that a user's own loop may train, once for each class, that it trains while
        no loop does what it asks.
        """
        kind = type(self)
        if torch.compiler.is_compiling() or self.served or not self.training or kind in _REMINDED:
            return
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            _REMINDED.add(kind)
            if asked := [name for name in ASKED if getattr(kind, name) is not getattr(TrainedPart, name)]:
                warnings.warn(
                    f"{kind.__name__} trains, but nothing calls its {' and '.join(asked)}: make parts = "
                    "vl.TrainedParts(model, optimizer, steps), add parts.losses() to the loss and call "
                    "parts.after_step() after each optimizer.step(), in every phase of vl.phases(model); see docs/"
                    "methods.md, 'Your own training loop'.",
                    stacklevel=2,
                )


# Methods of a part that somebody must call while it trains.
ASKED = ("extra_losses", "proximal_step", "set_progress")
# Classes that have been looked at by `remind`.
_REMINDED: set[type] = set()


class TrainedParts:
    """What a training loop does for the parts of a model during one phase.

    Args:
        model: holds the parts.
        optimizer: what steps on its parameters; see :func:`parameter_groups`.
        steps: optimiser steps of the phase.
        done: how many of them are done already, where it resumes.

    Attributes:
        step: steps done.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, steps: int, done: int = 0) -> None:
        self.optimizer, self.steps, self.step = optimizer, steps, done
        self._parts = [module for module in model.modules() if isinstance(module, TrainedPart)]
        self._stepping = [part for part in self._parts if type(part).proximal_step is not TrainedPart.proximal_step]
        for part in self._parts:
            part.served = True
        self._tell_progress()

    def losses(self) -> dict[str, Tensor]:
        """Return scalars by name that parts add to the loss of the batch that has just passed through the model."""
        found: dict[str, Tensor] = {}
        for part in self._parts:
            for name, value in part.extra_losses().items():
                found[name] = found[name] + value if name in found else value
        return found

    def clip(self, max_norm: float) -> Tensor:
        """Clip the norm of all gradients together, but those that parts exempt; returns the norm before."""
        clipped = stepped_by(self.optimizer, clipped=True)
        norm = gradient_norm(clipped)
        torch.nn.utils.clip_grads_with_norm_([p for p in clipped if not _is_divided(p)], max_norm, norm)
        for parameter in clipped:
            if _is_divided(parameter) and parameter.grad is not None:  # as torch does, on this process's part
                parameter.grad.to_local().mul_(torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        return norm

    def after_step(self, *, stepped: bool = True) -> None:
        """Make parts take steps of their own and tell them how far training is; call it before gradients are cleared.

        Args:
            stepped: whether the optimiser has stepped; False where the step was skipped, as loss scaling does.

        Raises:
            UserError: no gradient is left by which to tell what has stepped.
        """
        if stepped and self._stepping:
            self._proximal_steps()
        self.step += 1
        self._tell_progress()

    def _proximal_steps(self) -> None:
        """Take the parts' own steps, with the learning rate of their parameters; none where these do not train."""
        trained = [(p, group["lr"]) for group in self.optimizer.param_groups for p in group["params"]]
        rates = {id(p): lr for p, lr in trained if p.grad is not None}
        if not rates:
            raise UserError("after_step finds no gradients: call it after optimizer.step(), before zero_grad().")
        for part in self._stepping:
            own = [rates[id(p)] for p in part.parameters(recurse=False) if id(p) in rates]
            if own:
                part.proximal_step(own[0])

    def _tell_progress(self) -> None:
        for part in self._parts:
            part.set_progress(self.optimizer, self.step, self.steps)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Build optimiser groups of everything that requires a gradient, with what parts exempt in groups of its own.

    Returns:
        Groups as torch's optimisers take them: ``params``, ``weight_decay`` 0 where parts forbid it, and ``clip``,
        which :meth:`TrainedParts.clip` goes by.
    """
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    seen: set[int] = set()
    for module in model.modules():
        exempt = (module.no_decay, module.no_clip) if isinstance(module, TrainedPart) else ((), ())
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                groups.setdefault((name not in exempt[0], name not in exempt[1]), []).append(parameter)
    return [
        {"params": tensors, "clip": clip} | ({} if decay else {"weight_decay": 0.0})
        for (decay, clip), tensors in groups.items()
    ]


def stepped_by(optimizer: Optimizer, *, clipped: bool = False) -> list[Tensor]:
    """List all tensors an optimiser updates, in order; with `clipped`, without groups that have ``clip: False``."""
    groups = [group for group in optimizer.param_groups if not clipped or group.get("clip", True)]
    return [parameter for group in groups for parameter in group["params"]]


def gradient_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Compute the norm of the gradients of `tensors`, all together."""
    gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
    norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if not _is_divided(gradient)])
    if divided := [gradient for gradient in gradients if _is_divided(gradient)]:
        of_all: Any = torch.nn.utils.get_total_norm(divided)
        norm = torch.linalg.vector_norm(torch.stack([norm.to(of_all.device), of_all.full_tensor()]))
    return norm


def _is_divided(tensor: Tensor) -> bool:
    """Tell whether processes hold parts of a tensor (a DTensor); found by what it has, since its import is slow."""
    return hasattr(tensor, "full_tensor")
