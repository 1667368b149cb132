"""How a saved model's network is called as an ONNX graph. Models say it; they need nothing of the export itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class OnnxGraph:
    """How a model's network is called.

    Attributes:
        file: name of the file where a folder is given.
        inputs: name of each argument of its ``forward``, in order.
        outputs: name of each tensor that it returns, in order.
        draw: makes random arguments for a batch of some size, always the same.
        about: what the file's metadata says.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    draw: Callable[[int], tuple[Tensor, ...]]
    about: Mapping[str, Any]


def draw_pictures(count: int, size: int, seed: int = 0) -> Tensor:
    """Draw random pictures (count, 3, size, size), always the same."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
