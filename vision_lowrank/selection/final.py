"""From the search's adapter to the final one: a LoRA on the chosen modules, perhaps with shared or inherited pairs.

A shared pair is one A (r, in) and one B (out, r), the same two parameters in every module of a group, whose gradients
are the sums over these modules::

    ΔW_m = s · B A  for all m of a group,    dL/dA = Σ_m dL/dA_m,    dL/dB = Σ_m dL/dB_m

It counts once, steps once and is checkpointed once. :func:`unshare` gives every module a copy of its own: a plain LoRA,
to be saved or exported.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn

from ..attachment.attach import attach
from ..backbones.adapted import backbone_of
from ..errors import UserError

Pairs = dict[str, tuple[Tensor, Tensor]]


def adapt_anew(model: PeftModel, config: PeftConfig, paths: Collection[str], **attaching: Any) -> PeftModel:
    """Take all adapters off `model` and attach one on `paths`, which are full paths inside its base.

    Raises:
        UserError: as :func:`vision_lowrank.attach`.
    """
    config = copy.deepcopy(config)
    config.target_modules = set(paths)
    return attach(model.unload(), config, **attaching)


def pairs_of(model: PeftModel, paths: Iterable[str]) -> Pairs:
    """Copy A and B of the LoRA modules at `paths`."""
    return {path: (down.weight.detach().clone(), up.weight.detach().clone()) for path, down, up in _pairs(model, paths)}


@torch.no_grad()
def put_pairs(model: PeftModel, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Copy values into A and B of the LoRA modules that `pairs` names."""
    for path, down, up in _pairs(model, pairs):
        down.weight.copy_(pairs[path][0])
        up.weight.copy_(pairs[path][1])


def share_pairs(model: PeftModel, groups: Iterable[Sequence[str]]) -> None:
    """Make all LoRA modules of a group use the pair of its first; the shapes in a group must be equal.

    Raises:
        UserError: they are not.
    """
    for group in groups:
        (first, down, up), *others = _pairs(model, group)
        for path, other_down, other_up in others:
            if (other_down.weight.shape, other_up.weight.shape) != (down.weight.shape, up.weight.shape):
                raise UserError(f"'{first}' and '{path}' cannot share a pair: their shapes differ.")
            other_down.weight, other_up.weight = down.weight, up.weight


def unshare(model: nn.Module) -> None:
    """Give every LoRA module parameters of its own, equal in value to those it shared."""
    seen: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, PeftLoraLinear):
            for linear in (*layer.lora_A.values(), *layer.lora_B.values()):
                if id(linear.weight) in seen:
                    linear.weight = nn.Parameter(linear.weight.detach().clone(), linear.weight.requires_grad)
                seen.add(id(linear.weight))


def _pairs(model: PeftModel, paths: Iterable[str]) -> list[tuple[str, nn.Linear, nn.Linear]]:
    """List path and the linears that hold A and B, of the active adapter."""
    base, adapter = backbone_of(model), model.active_adapter
    layers = {path: base.get_submodule(path) for path in paths}
    for path, layer in layers.items():
        if not isinstance(layer, PeftLoraLinear):
            raise UserError(f"'{path}' is a {type(layer).__name__}, not a plain LoRA: leave the initializer out.")
    return [(path, layer.lora_A[adapter], layer.lora_B[adapter]) for path, layer in layers.items()]
