"""Let an initialiser start the adapter of every layer; and the gradients that some initialisers look at.

W is never altered and the adapters are off while gradients are taken, so they are those of the base model. Only one
layer's gradient exists on the device at a time: each is moved to the host when autograd has it, and one by one they
come back for their SVD.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from torch import Tensor, nn

from ..adapters.base import WeightUpdate
from ..adapters.tuner import AdapterLayer, adapter_layers
from ..backbones.adapted import without_adapter
from ..errors import UserError
from ..modes import preserved
from .base import Initializer, Site

# The loss of one calibration batch, given the model.
Losses: TypeAlias = Sequence[Callable[[nn.Module], Tensor]]


def initialize(
    model: PeftModel, initializer: Initializer, losses: Losses | None = None, adapter_name: str = "default"
) -> None:
    """Start every layer of an adapter from what `initializer` gives.

    Args:
        model: with a fresh adapter of ours.
        initializer: any registered one.
        losses: one function per calibration batch, model -> loss (a mean over samples), for initialisers that look at
            the gradient. They must be deterministic and see training data only.
        adapter_name: which adapter.

    Raises:
        UserError: the adapter defines its own start, calibration losses are missing, or a layer cannot be started.
    """
    layers = {name: layer for name, layer in adapter_layers(model) if adapter_name in layer.weight_update}
    config = model.peft_config[adapter_name]
    fixed = [each for each in layers.values() if not takes_start(each.weight_update[adapter_name])]
    if fixed or not layers:
        method = str(getattr(config.peft_type, "value", config.peft_type)).lower()
        raise UserError(f"{method} defines its own start: leave the initializer out.")
    if initializer.needs_gradient and not losses:
        raise UserError(f"{initializer.type} looks at gradients: give losses, one function per calibration batch.")
    gradients = weight_gradients(model, layers, losses) if initializer.needs_gradient and losses else {}
    with _bar() as bar:
        for name, layer in bar.track(layers.items(), description=f"{initializer.type}: starting points"):
            update = layer.weight_update[adapter_name]
            gradient = gradients.pop(name, None)
            update.drop_offset()
            update.start_from(initializer.start(_site(name, layer, update, gradient)))
            if initializer.keeps_output:
                update.hold_output()
    config.initializer, config.offset = initializer.type, initializer.keeps_output


def takes_start(update: WeightUpdate) -> bool:
    """Tell whether the update has factors that an initialiser can set."""
    return type(update).start_from is not WeightUpdate.start_from


def weight_gradients(model: nn.Module, layers: dict[str, AdapterLayer], losses: Losses) -> dict[str, Tensor]:
    """Compute the losses' mean gradient with respect to each layer's W (out, in), on the host, float32 or wider.

    The adapters of `layers` are off, the model is in evaluation mode, and everything is put back.
    """
    sums: dict[str, Tensor] = {}
    handles = []
    try:
        with preserved(model), without_adapter(model), torch.enable_grad(), _bar() as bar:
            model.requires_grad_(False).eval()
            for name, layer in layers.items():
                weight = layer.base_layer.weight.requires_grad_()
                handles.append(weight.register_post_accumulate_grad_hook(_collector(sums, name, layer)))
            for loss in bar.track(losses, description="gradients of calibration batches"):
                (loss(model) / len(losses)).backward()
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _collector(sums: dict[str, Tensor], name: str, layer: AdapterLayer) -> Callable[[Tensor], None]:
    def collect(weight: Tensor) -> None:
        gradient = layer.oriented(weight.grad).to("cpu", torch.promote_types(weight.dtype, torch.float32))
        weight.grad = None
        sums[name] = sums[name].add_(gradient) if name in sums else gradient

    return collect


def _site(name: str, layer: AdapterLayer, update: Any, gradient: Tensor | None) -> Site:
    weight = layer.oriented(layer.base_layer.weight.detach())
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    own = update.own_factors()
    return Site(name, weight, None if gradient is None else gradient.to(weight), own.A.shape[0], own.scale)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn(show_speed=True))
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
