"""What a regulariser is: options, and a module that turns what a training step computed into further losses.

In each step the task shows its :class:`Penalty` what it computed (:meth:`Penalty.observe`), and the engine, which asks
all trained parts for ``extra_losses()`` after the forward pass, adds what comes back to the task's loss. Weights are
included; what was observed is used once and forgotten; in evaluation there is nothing to add.

The pretrained model is asked for only by regularisers that compare with it (:attr:`Regularizer.teacher`). The task
gets it from the model at hand with the adapter off, which is right as long as W itself was left alone: what alters W is
refused by :meth:`Regularizer.check`.

Statistics over a batch (covariances, spectra, positives) see the micro-batches of all processes together, each sample
once; those of ``engine.accumulate`` are seen one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from ..config.schema import RunConfig, Section
from ..errors import UserError
from ..modes import rows_count
from ..trained import TrainedPart

# What ``init_lora_weights`` of PEFT's LoRA may be; the others subtract the starting product from the frozen weight.
KEEP_W = ("true", "false", "gaussian", "orthogonal", "eva", "mica")


class Observed(NamedTuple):
    """What one training step computed.

    Attributes:
        logits: (B, C), with gradient.
        features: (B, e), what the head was fed, with gradient.
        labels: (B,) class numbers, or (B, C) weights that sum to 1 where pictures were mixed.
        scale: what cosines were multiplied by to give the logits; None where the logits are no cosines.
        teacher: gives the pretrained model's logits (B, C) of the same batch, without gradient.
        teacher_features: gives its features (B, e), without gradient.
    """

    logits: Tensor
    features: Tensor
    labels: Tensor
    scale: Tensor | float | None
    teacher: Callable[[], Tensor]
    teacher_features: Callable[[], Tensor]


class Regularizer(Section):
    """Base of all regularisers; their fields are the keys of a config's ``regularizer:`` section."""

    @property
    def teacher(self) -> Literal["logits", "features"] | None:
        """What it asks of the pretrained model; None where it asks nothing."""
        return None

    @property
    def wants_unmixed(self) -> bool:
        """Whether it looks at pictures of a single class only, so that not all views should be mixed."""
        return False

    def check(self, config: RunConfig) -> None:
        """Refuse what makes no sense together, before anything is loaded.

        Raises:
            UserError: the task shows nothing to regularisers, or the pretrained model will not be there to compare
                with.
        """
        name: Any = getattr(self, "type", type(self).__name__)
        if not getattr(config.task, "takes_regularizer", False):
            raise UserError(f"regularizer {name}: task '{config.task.type}' does not take one: leave it out.")
        if self.teacher is None:
            return
        if config.adapter is not None and (odd := alters_base(config.adapter.config())):
            raise UserError(
                f"regularizer {name}: {odd} changes the frozen weights, so that the adapter switched off is not the "
                "pretrained model it must compare with: use `initializer: {type: pissa}` or the adapter's own start."
            )
        if config.rule is not None and config.rule.moves_base:
            raise UserError(
                f"regularizer {name}: rule '{config.rule.type}' moves the frozen weights while losses are computed, so "
                "that there is no pretrained model to compare with: use another rule, or leave one of them out."
            )
        if self.teacher == "logits" and getattr(config.task, "head", "text") != "text" and config.rule is not None:
            raise UserError(
                f"regularizer {name}: a {config.task.head} head is first trained alone, where the rule "
                f"'{config.rule.type}' has no adapter to work on: compare features instead, or leave the rule out."
            )

    def start(self) -> Penalty:
        """Return what does the work in one run."""
        raise NotImplementedError


class Penalty(TrainedPart):
    """Base of what regularisers put into a task; subclasses define :meth:`losses`."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: Observed | None = None

    def observe(self, seen: Observed) -> None:
        """Remember what the current training step computed."""
        self._seen = seen if self.training else None

    def extra_losses(self) -> dict[str, Tensor]:
        """Compute the weighted terms of what was observed, which is then forgotten; empty where nothing was."""
        seen, self._seen = self._seen, None
        return self.losses(seen) if seen is not None and self.training else {}

    def losses(self, seen: Observed) -> dict[str, Tensor]:
        """Compute weighted scalars by name."""
        raise NotImplementedError


def exact(like: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast does not reduce the precision of products."""
    return torch.autocast(like.device.type, enabled=False)


def wide(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 or wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def gather_rows(tensor: Tensor) -> Tensor:
    """Gather the rows of all processes, in order of rank, with gradient: (B, …) -> (sum of all B, …).

    Processes may have different numbers of rows, and those of a process whose rows do not count (``modes.rows_count``)
    are left out; where nobody's count, all are gathered, for a loss that will have the weight 0. If every process adds
    the same loss of all rows with a weight, and the weights sum to 1, the gradients summed over processes are those of
    that loss.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensor
    counts = torch.zeros(2, dist.get_world_size(), dtype=torch.long, device=tensor.device)
    counts[:, dist.get_rank()] = torch.tensor([len(tensor), len(tensor) * rows_count()])
    dist.all_reduce(counts)
    counts = counts[1] if counts[1].any() else counts[0]
    tensor = tensor[: int(counts[dist.get_rank()])]
    first, total = int(counts[: dist.get_rank()].sum()), int(counts.sum())
    rows = torch.cat([tensor.new_zeros(first, *tensor.shape[1:]), tensor])
    rest = tensor.new_zeros(total - len(rows), *tensor.shape[1:])
    return _Sum.apply(torch.cat([rows, rest]))


class _Sum(Function):
    """Sum over processes, whose gradient is summed over processes too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0].contiguous())


def alters_base(config: Any) -> str | None:
    """Name what in a PEFT config alters W when it attaches, None if nothing does."""
    start = str(getattr(config, "init_lora_weights", True)).lower()
    if start not in KEEP_W:
        return f"PEFT's init_lora_weights={start}"
    return "PEFT's KaSA" if getattr(config, "kasa_config", None) is not None else None
