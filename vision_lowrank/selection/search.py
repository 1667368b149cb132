r"""The two-level steps of a gated search: adapters learn from training data, gates from held-out data.

With trained tensors θ (adapters and head), logits a, and batches of held-out data redrawn at each step::

    min_a L_val(θ*(a), a)      where θ*(a) = argmin_θ L_train(θ, a)

    inner:  the engine's own step on θ with L_train(θ, a), a constant
    outer:  Adam on a with the hypergradient g, the model in evaluation mode

    first_order:  g = ∂_a L_val(θ', a)                                   θ' is θ after the inner step
    unrolled:     g = ∂_a L_val(θ', a) - η (∂²L_train / ∂a ∂θ)ᵀ v,       v = ∇_θ' L_val(θ', a)

The second is the gradient of a -> L_val(θ - η ∇L_train(θ, a), a), one step of SGD with rate η. Its product with the
mixed second derivative is a central difference, with the same training batch and the same random numbers::

    η (∂²L_train / ∂a ∂θ)ᵀ v ≈ [∂_a L_train(θ + ε η v, a) - ∂_a L_train(θ - ε η v, a)] / (2 ε),    ε = 0.01 / ‖η v‖

η is what the inner step multiplies its gradient by: its learning rate lr, and lr (1 + μ) with Nesterov's momentum μ,
which adds the gradient a second time. The rest of momentum and weight decay does not depend on a. Nothing of the outer
step reaches θ, its gradients or the engine's optimiser. Held-out batches depend on the seed and the step alone, and
every process computes the same outer step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import default_collate

from ..config.schema import Decay, Section
from ..errors import UserError
from ..modes import preserved
from ..optim.base import Closure, Groups, StepContext, Steps, norm
from .gates import Gates

DISTANCE = 0.01


class SearchOptions(Section):
    """What a search goes by."""

    steps: int = Field(200, ge=1, description="optimiser steps of the search, before those of `engine.steps`")
    holdout: float = Field(0.2, gt=0, lt=1, description="share of each class's training pictures for the outer problem")
    lr: float = Field(0.01, gt=0, description="Adam's learning rate of the logits")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Adam's betas for the logits")
    inner_steps: int = Field(1, ge=1, description="optimiser steps of the adapter per step of the logits")
    val_batches: int = Field(1, ge=1, description="held-out batches per step of the logits")
    hypergrad: Literal["first_order", "unrolled"] = Field(
        "first_order", description="`unrolled` also differentiates through the last inner step, which must be SGD's"
    )

    @property
    def delay(self) -> int:
        """Inner steps before the first step of the logits."""
        return 0


class Search(Steps):
    """The steps of a search stage, whose task has ``gates`` and ``selection_data()``, the held-out data set.

    Raises:
        UserError: the task has no gates.
    """

    def __init__(self, options: SearchOptions, stage: StepContext) -> None:
        super().__init__(stage)
        task: Any = stage.model
        if not isinstance(task.gates, Gates):
            raise UserError(f"selection: task {type(task).__name__} cannot search; leave `selection` out.")
        self.options, self.task, self.gates = options, task, task.gates
        self._closure: Closure | None = None
        self._start: list[Tensor] = []
        self._held_out_loss: float | None = None

    def prepare(self) -> None:
        """Get the held-out data.

        Raises:
            UserError: there is none, or ``unrolled`` in more than one process.
        """
        self._data = self.task.selection_data()
        if not len(self._data):
            raise UserError("selection: no picture is held out: raise selection.holdout, or give more pictures.")
        many = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self.options.hypergrad == "unrolled" and many and torch.distributed.get_world_size() > 1:
            raise UserError(
                "selection: hypergrad=unrolled needs a single process: set selection.hypergrad=first_order."
            )

    def optimizer(self, groups: Groups) -> Optimizer:
        """Build the inner problem's optimiser, from the settings; the logits have one of their own."""
        self._inner = super().optimizer(groups)
        self._outer = torch.optim.Adam([self.gates.logits], self.options.lr, self.options.betas)
        return self._inner

    def gradients(self, closure: Closure) -> dict[str, float]:
        """Compute the plain gradients of the inner problem."""
        if self.options.hypergrad == "unrolled":
            self._closure = closure
            self._start = [tensor.detach().clone() for tensor, _ in self._trained()]
        losses = closure()
        return losses if self._held_out_loss is None else losses | {"held_out_loss": self._held_out_loss}

    def after_step(self, step: int) -> None:
        """Take the outer step, where one is due."""
        if step <= self.options.delay or step % self.options.inner_steps:
            return
        gradient, self._held_out_loss = self.hypergradient(step)
        if gradient.isfinite().all():
            self.gates.logits.grad = gradient
            self._outer.step()
            self._outer.zero_grad()

    def hypergradient(self, step: int) -> tuple[Tensor, float]:
        """Compute g (n,) after inner step `step`, and the held-out loss."""
        unrolled = self.options.hypergrad == "unrolled"
        tensors = [tensor for tensor, _ in self._trained()] if unrolled else []
        sums = [torch.zeros_like(tensor) for tensor in (self.gates.logits, *tensors)]
        total = 0.0
        with self._differentiable(tensors), torch.enable_grad():
            self.task.eval()
            for batch in self._batches(step):
                loss = self._loss(batch) / self.options.val_batches
                total += float(loss.detach())
                wanted = [self.gates.logits, *tensors]
                for part, sum_ in zip(torch.autograd.grad(loss, wanted, allow_unused=True), sums, strict=True):
                    if part is not None:
                        sum_ += part
        gradient, *v = sums
        return (gradient - self._second_order(v) if unrolled else gradient), total

    @torch.no_grad()
    def _second_order(self, v: list[Tensor]) -> Tensor:
        """Compute η (∂²L_train / ∂a ∂θ)ᵀ v at the θ from which the inner step started."""
        tensors, rates = zip(*self._trained(), strict=True)
        direction = [rate * each for each, rate in zip(v, rates, strict=True)]
        size = float(norm(direction))
        if size == 0:
            return torch.zeros_like(self.gates.logits)
        epsilon = DISTANCE / size
        ends, gradients = [tensor.clone() for tensor in tensors], [tensor.grad for tensor in tensors]
        sides = []
        try:
            for signed in (epsilon, -epsilon):
                for tensor, start, each in zip(tensors, self._start, direction, strict=True):
                    tensor.copy_(start + signed * each)
                sides.append(self._training_gradient())
        finally:
            for tensor, end, gradient in zip(tensors, ends, gradients, strict=True):
                tensor.copy_(end).grad = gradient
        return (sides[0] - sides[1]) / (2 * epsilon)

    @torch.enable_grad()
    def _training_gradient(self) -> Tensor:
        """Compute ∂_a L_train of the inner step's batch, at the present θ."""
        logits = self.gates.logits
        with self._differentiable():
            self._closure()
            gradient, logits.grad = logits.grad, None
        return gradient

    @contextmanager
    def _differentiable(self, tensors: Sequence[Tensor] = ()) -> Iterator[None]:
        """Give gradients to the logits and `tensors` alone; modes and flags are put back."""
        with preserved(self.task):
            self.task.requires_grad_(False)
            try:
                for tensor in (self.gates.logits, *tensors):
                    tensor.requires_grad_(True)
                yield
            finally:
                self.gates.logits.requires_grad_(False)

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        kind, precision = self.gates.logits.device.type, self.stage.settings.precision
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
            return self.task.training_step(batch)["loss"]

    def _batches(self, step: int) -> Iterator[dict[str, Any]]:
        """Yield the held-out batches after inner step `step`: epoch after epoch, each in an order of its own."""
        size, count, device = self.stage.settings.batch_size, self.options.val_batches, self.gates.logits.device
        epoch_length = -(-len(self._data) // size)
        for number in range((step - 1) * count, step * count):
            epoch, place = divmod(number, epoch_length)
            generator = np.random.default_rng([self.stage.seed, self.stage.index, epoch])
            order = generator.permutation(len(self._data))[place * size : (place + 1) * size]
            batch = default_collate([self._data[int(index)] for index in order])
            yield {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}

    def _trained(self) -> list[tuple[Tensor, float]]:
        """List θ, and η of the last inner step."""
        return [(tensor, _gradient_rate(group)) for group in self._inner.param_groups for tensor in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Return Adam's state of the logits; the logits themselves are in the task's state."""
        return {"outer": self._outer.state_dict(), "held_out_loss": self._held_out_loss}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave."""
        self._outer.load_state_dict(state["outer"])
        self._held_out_loss = state["held_out_loss"]


def _gradient_rate(group: Mapping[str, Any]) -> float:
    """Return η of an SGD group: what its step multiplies the step's own gradient by."""
    return group["lr"] * (1 + group["momentum"] if group.get("nesterov") else 1)
