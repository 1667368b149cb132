"""What an initialiser is: options, and the rule that turns one layer's weight (and gradient) into starting factors.

An initialiser gives a :class:`~vision_lowrank.adapters.base.Start`: A (r, in), core (r, r) and B (out, r), to be used
as ΔW = scale · B core A. A method takes what it can hold of it (``WeightUpdate.start_from``): LoRA takes A and
B core, Comp-LoRA the part inside its complement. W is never altered. Where the initialiser :attr:`keeps_output`, the
update then carries an offset that makes ΔW zero; otherwise the model starts away from the base by definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ..adapters.base import Start
from ..config.schema import Section
from ..errors import UserError


@dataclass(frozen=True)
class Site:
    """One linear that an initialiser looks at.

    Attributes:
        name: of the layer, for messages.
        weight: W (out, in), float32 or wider; read only.
        gradient: mean gradient of the loss with respect to W (out, in); None unless the initialiser needs it.
        r: rank of the factors to give.
        scale: what the method multiplies B core A by.
    """

    name: str
    weight: Tensor
    gradient: Tensor | None
    r: int
    scale: float


class Initializer(Section):
    """Base of all initialisers; their fields are the keys of a config's ``initializer:`` section."""

    needs_gradient: ClassVar[bool] = False

    @property
    def keeps_output(self) -> bool:
        """Whether attaching leaves the output unchanged: as an option `residual` says, where there is one."""
        return getattr(self, "residual", True)

    def start(self, site: Site) -> Start:
        """Compute factors for one layer.

        Raises:
            UserError: the layer has no room for the rank, or its gradient is zero.
        """
        raise NotImplementedError

    def for_training(self, lr: float, warmup_steps: int) -> Initializer:
        """Fill in what it needs to know of the run: its peak learning rate and steps of warm-up."""
        return self


class GradientInitializer(Initializer):
    """Base of initialisers that look at the gradient of the task's loss."""

    needs_gradient: ClassVar[bool] = True

    samples: int = Field(128, ge=1, description="training pictures the gradient is averaged over, class-balanced")
    batch_size: int = Field(32, ge=1, description="pictures per calibration batch")
    seed: int = Field(0, ge=0, description="seed of the choice of pictures")

    def gradient_of(self, site: Site) -> Tensor:
        """Return ``site.gradient``.

        Raises:
            UserError: it is zero or not finite: nothing can be learnt from it.
        """
        gradient = site.gradient
        if gradient is None or not gradient.any() or not gradient.isfinite().all():
            raise UserError(
                f"the loss has no usable gradient at '{site.name}' (zero or not finite): warm the head up first, and "
                "adapt only towers that the loss depends on."
            )
        return gradient
