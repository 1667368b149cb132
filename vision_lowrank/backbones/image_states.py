"""States of image tokens inside a tower, without running what lies above them.

With x_0 the embedded tokens and block l of a tower mapping x_{l-1} to x_l, the *states after layer l* are x_l before
any final norm, 0 <= l <= L. :func:`states_after` reads x_l where block l + 1 receives it and ends the pass there, so
that what a model adds between two blocks is part of the state, and blocks above the highest layer never run.

A picture is seen through one or more tiles. :func:`join_tiles` lays the tokens of its tiles one after another, pads
shorter pictures with zeros, and says which places are real::

    tiles (M, n, d), counts c_1 … c_B with sum M  ->  states (B, max(c) n, d), valid (B, max(c) n)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError


@dataclass(frozen=True)
class TokenLayout:
    """What the tokens of a vision transformer are.

    Attributes:
        grid: rows and columns of patches.
        prefix: number of class and register tokens before them.
        width: channels of every token.
    """

    grid: tuple[int, int]
    prefix: int
    width: int


class _Reached(Exception):
    """The highest layer that was asked for has been read."""


def states_after(blocks: Sequence[nn.Module], layers: Sequence[int], run: Callable[[], Any]) -> list[Tensor]:
    """Record x_l for every l in `layers`, in that order, while `run()` passes through `blocks`.

    The pass ends before block max(layers) + 1. Gradients flow where they are enabled.

    Raises:
        UserError: `layers` is empty or names one outside 0 … len(blocks).
    """
    check_layers(layers, len(blocks))
    highest, kept = max(layers), {}

    def before(index: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept[index] = args[0] if args else kwargs["hidden_states"]
            if index == highest:
                raise _Reached

        return hook

    def last(block: nn.Module, args: Any, output: Any) -> None:
        kept[len(blocks)] = output if isinstance(output, Tensor) else output[0]

    handles = [
        blocks[index].register_forward_pre_hook(before(index), with_kwargs=True)
        for index in set(layers)
        if index < len(blocks)
    ]
    if highest == len(blocks):
        handles.append(blocks[-1].register_forward_hook(last))
    try:
        run()
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [kept[layer] for layer in layers]


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Raise UserError where `layers` is empty or names one outside 0 … `depth`."""
    if not layers:
        raise UserError("layers is empty: name at least one, such as [0].")
    for layer in layers:
        if not 0 <= layer <= depth:
            raise UserError(f"layer {layer} does not exist: states are those after layer 0 (embeddings) to {depth}.")


def check_image_size(image_size: int | None, patch: int, name: str) -> None:
    """Raise UserError where `image_size`, if any was asked for, is not a positive multiple of the `patch` of `name`."""
    if image_size is not None and (image_size < patch or image_size % patch):
        near = max(patch, round(image_size / patch) * patch)
        raise UserError(
            f"image_size = {image_size}: '{name}' reads patches of {patch} pixels, so it must be a multiple of that, "
            f"such as {near}."
        )


def check_tiles(tiles: Tensor, counts: Sequence[int], size: int) -> None:
    """Raise UserError unless `tiles` is (sum of `counts`, 3, `size`, `size`) and every count is positive."""
    if min(counts, default=0) < 1 or len(tiles) != sum(counts):
        raise UserError(f"{len(tiles)} tiles do not make pictures of {list(counts)} tiles: each needs at least one.")
    if tuple(tiles.shape[1:]) != (3, size, size):
        raise UserError(f"tiles of shape {tuple(tiles.shape[1:])}: this backbone reads (3, {size}, {size}).")


def join_tiles(tiles: Tensor, counts: Sequence[int]) -> Tensor:
    """Join (M, n, d) tokens of tiles to (B, max(counts) n, d) tokens of pictures, zeros for missing tiles."""
    pictures = [picture.flatten(0, 1) for picture in tiles.split(list(counts))]
    return nn.utils.rnn.pad_sequence(pictures, batch_first=True)


def valid_places(counts: Sequence[int], tokens: int, device: torch.device) -> Tensor:
    """Build the mask of places, bool (B, max(counts) · tokens): True where a picture has a token."""
    ends = torch.tensor(list(counts), device=device)[:, None] * tokens
    return torch.arange(max(counts) * tokens, device=device) < ends
