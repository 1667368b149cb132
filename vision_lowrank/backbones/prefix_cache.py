"""Outputs of the blocks below the first one that trains, computed once per sample and kept.

In a tower whose blocks 0 … d-1 and everything before them are frozen, the input of block d depends on the sample alone:
for class prompts, and for pictures without random augmentation, it is the same at every step. While
:meth:`PrefixCache.using` is active, these d blocks give what they gave before instead of computing it again, bit for
bit. Frozen blocks never record a graph, with or without the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .base import Backbone

MAX_BYTES = 2**30


class PrefixCache:
    """The prefix of one tower.

    Args:
        model: a backbone, attached or not, whose ``requires_grad`` flags say what trains.
        tower: name of the tower.

    Attributes:
        depth: number of blocks below the first that trains, all where none does; 0 where nothing can be kept.
    """

    def __init__(self, model: nn.Module, tower: str) -> None:
        paths = model.towers[tower].blocks
        self.blocks = [_block(model, path) for path in paths]
        everywhere = {id(p) for each in model.towers.values() for path in each.blocks for p in _own(model, path)}
        trained = [p for p in model.parameters() if p.requires_grad]
        outside = any(id(p) not in everywhere for p in trained)  # perhaps an embedding, before the blocks
        trains = [any(p.requires_grad for p in block.parameters()) for block in self.blocks]
        self.depth = 0 if outside else [*trains, True].index(True)
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    @contextmanager
    def using(self, keys: Sequence[int]) -> Iterator[None]:
        """Run the tower inside the block on the samples that `keys` name, in their order, one per row of the batch."""
        if not self.depth or torch.compiler.is_compiling():
            yield
            return
        known = all(key in self._kept for key in keys)
        *before, last = self.blocks[: self.depth]
        if known:
            for block in before:
                block.forward = _identity
            last.forward = lambda *args, **kwargs: torch.stack([self._kept[key] for key in keys])
        else:
            last.forward = self._recording(last, keys)
        try:
            yield
        finally:
            for block in self.blocks[: self.depth]:
                block.__dict__.pop("forward", None)

    def _recording(self, block: nn.Module, keys: Sequence[int]) -> Any:
        forward = block.forward

        def run(*args: Any, **kwargs: Any) -> Tensor:
            result = forward(*args, **kwargs)
            if isinstance(result, Tensor) and len(result) == len(keys):
                for key, row in zip(keys, result.detach(), strict=True):
                    if key not in self._kept and self._bytes < MAX_BYTES:
                        self._kept[key] = row.clone()
                        self._bytes += row.nbytes
            return result

        return run


def _identity(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x


def _block(model: nn.Module, path: str) -> nn.Module:
    backbone = next(module for module in model.modules() if isinstance(module, Backbone))
    return backbone.get_submodule(path)


def _own(model: nn.Module, path: str) -> Iterator[nn.Parameter]:
    return _block(model, path).parameters()
