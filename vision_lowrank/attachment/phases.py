"""Training phases of the adapter on a model: most methods have one, LoFiT and SoRA several.

A task turns every phase into a stage of the engine (:func:`phases`) and announces it when the stage begins or resumes
(:func:`begin_phase`). A loop of one's own does the same, with an optimiser for each phase::

    for phase, settings in vl.phases(model).items():
        vl.begin_phase(model, phase)
        optimizer = torch.optim.AdamW(vl.parameter_groups(model), **({"lr": 1e-3} | settings))
        parts = vl.TrainedParts(model, optimizer, steps)

and goes on as in :mod:`vision_lowrank.trained`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..adapters.base import MethodConfig
from ..adapters.tuner import adapter_layers


def phases(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the active adapter's phases by name, in order, with settings each overrides (``lr``, ``weight_decay``)."""
    config = _config(model)
    return config.phases() if config else {"train": {}}


def begin_phase(model: nn.Module, phase: str) -> None:
    """Get the active adapter's updates ready for a phase; which parameters train may change."""
    config = _config(model)
    if config:
        name = model.active_adapters[0]
        layers = adapter_layers(model)
        updates = {path: layer.weight_update[name] for path, layer in layers if name in layer.weight_update}
        config.begin_phase(updates, phase)


def _config(model: nn.Module) -> MethodConfig | None:
    config = getattr(model, "active_peft_config", None)
    return config if isinstance(config, MethodConfig) else None
