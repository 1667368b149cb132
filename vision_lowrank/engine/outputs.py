"""What a model gives for the samples of a set, put together from batches and processes, in the order of the set.

By name there is a tensor, whose first dimension is the batch, or a list with one value per sample: boxes (n, 4) with an
n of their own, a picture of any size, a dictionary of tensors. Tensors are joined along their first dimension, lists
are joined as lists, so nothing is ever padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .task import Outputs


def to_host(value: Any) -> Any:
    """Move all tensors in `value` to the CPU, those of half precision as float32, however nested.

    Looked into are dictionaries, lists, tuples and dataclasses; anything else is left as it is.
    """
    if isinstance(value, Tensor):
        return value.detach().to(
            "cpu", torch.float32 if value.dtype in (torch.bfloat16, torch.float16) else value.dtype
        )
    if isinstance(value, dict):
        return {key: to_host(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        each = map(to_host, value)
        return type(value)(*each) if hasattr(value, "_fields") else type(value)(each)  # a named tuple takes them singly
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: to_host(getattr(value, field.name)) for field in fields(value)})
    return value


def join(parts: Sequence[Outputs]) -> Outputs:
    """Join the outputs of several batches, one after the other."""
    return {name: _joined([part[name] for part in parts]) for name in parts[0]} if parts else {}


def in_order(shares: Sequence[Outputs], size: int) -> Outputs:
    """Join the outputs of W processes, process r holding samples r, r + W, … of `size`, in the order of the set.

    Raises:
        ValueError: the number of values of some name is not that of the samples.
    """
    places = [place for rank in range(len(shares)) for place in range(rank, size, len(shares))]
    order = sorted(range(size), key=places.__getitem__)
    outputs = join([share for share in shares if share])
    for name, values in outputs.items():
        if len(values) != size:
            raise ValueError(f"eval_step gave {len(values)} values of '{name}' for {size} samples: give one for each.")
    return {name: _chosen(values, order) for name, values in outputs.items()}


def _joined(parts: Sequence[Any]) -> Any:
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else [value for part in parts for value in part]


def _chosen(values: Any, order: Sequence[int]) -> Any:
    return values[torch.tensor(order)] if isinstance(values, Tensor) else [values[place] for place in order]
