"""Which modules are in training mode, which parameters train, how is computed, and whether rows count: put back after
an excursion.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

AUTOCAST = ("cpu", "cuda", "mps")
_rows_count = True


class Modes:
    """Which modules of a model are in training mode and which parameters train, as they are now.

    Args:
        model: any; what it holds when the modes are put back but not now stays as it is.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def put_back(self) -> None:
        """Make them what they were."""
        for module, mode in self._modes:
            module.training = mode
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back at the end which modules are in training mode and which parameters train.

    PEFT lets everything of an adapter train whenever it switches to it or back.
    """
    modes = Modes(model)
    try:
        yield
    finally:
        modes.put_back()


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode inside; afterwards every submodule is in the mode it was in, frozen ones included."""
    modes = {each: each.training for each in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes.items():
            each.training = mode


@contextmanager
def ordinary() -> Iterator[None]:
    """Compute inside as PyTorch does by itself, whatever the caller has on: no autocast, no inference mode.

    What is made in inference mode never trains, and a probe under autocast is another probe.
    """
    with torch.inference_mode(False), ExitStack() as stack:
        for device in AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def rows_counting(count: bool) -> Iterator[None]:
    """Say inside whether the samples that pass through a model are samples of the step's batch.

    Not so is the filler of a part of the batch that would be empty; statistics over a batch must leave it out.
    """
    global _rows_count
    before, _rows_count = _rows_count, count
    try:
        yield
    finally:
        _rows_count = before


def rows_count() -> bool:
    """Tell what :func:`rows_counting` says; true outside of it."""
    return _rows_count
