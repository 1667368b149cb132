"""A batch whose rows have different adapters: ``model(x, adapter_names=[…])``, PEFT's interface, for methods of ours.

y_i = x_i Wᵀ + b + h_i(x_i), with the h of the adapter that is named for row i, or none for ``__base__``. The rows of
one adapter are computed together. Only linears to which an update is added can do this: what edits inputs, tokens or
whole modules works with one adapter at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from ..errors import UserError, near_miss

BASE = "__base__"


@contextmanager
def rows_served(tuner: Any, names: Sequence[str]) -> Iterator[None]:
    """Hand `names` to every adapted layer that runs inside the block.

    Raises:
        UserError: the model is in training mode, a name is unknown, or a layer cannot serve rows.
    """
    if tuner.training:
        raise UserError("adapter_names is for prediction: call model.eval() first.")
    layers = [child for child in tuner.modules() if isinstance(child, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    for name in names:
        if name != BASE and name not in tuner.peft_config:
            known = [BASE, *tuner.peft_config]
            raise UserError(f"adapter_names: there is no '{name}'.{near_miss(name, known)} Known: {', '.join(known)}.")
    if not all(layer.serves_rows for layer in layers if isinstance(layer, BaseTunerLayer)):
        method = next(iter(tuner.peft_config.values())).method
        raise UserError(f"{method} works with one adapter at a time: leave adapter_names out and call set_adapter.")
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, "adapter_names": list(names)}), with_kwargs=True
        )
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forward_rows(layer: Any, x: Tensor, names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
    """Compute a layer whose rows have the adapters `names`: (B, …, in) -> (B, …, out).

    Raises:
        UserError: not one name for each row, or adapters that are merged.
    """
    if len(names) != len(x):
        raise UserError(f"adapter_names has {len(names)} names for {len(x)} rows: give one for each.")
    if layer.merged:
        raise UserError("adapter_names cannot choose among merged adapters: unmerge them first.")
    result = layer.base_layer(x, *args, **kwargs)
    if layer.disable_adapters:
        return result
    total = result
    for name in dict.fromkeys(names):
        if name in layer.weight_update:
            rows = torch.tensor([row for row, own in enumerate(names) if own == name], device=x.device)
            update = layer.weight_update[name]
            added = update(layer._cast_input_dtype(x[rows], update.dtype))
            total = total.to(torch.promote_types(total.dtype, added.dtype))
            total = total.index_add(0, rows, added.to(total.dtype))
    return total.to(result.dtype)


def is_narrow(module: nn.Module) -> bool:
    """Tell whether a module's weight is a floating-point tensor narrower than float32."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.is_floating_point() and torch.finfo(weight.dtype).bits < 32
