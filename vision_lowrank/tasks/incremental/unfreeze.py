"""Controlled fine-tuning: which parameters of a student train when.

Paper: CoACT, "Consistency-Guided Asynchronous Contrastive Tuning for Few-Shot Class-Incremental Tuning of Foundation
Models", arXiv 2405.16625. A student has three parts (:class:`Parts`):

* ``pet``: the adapter's own trainable tensors;
* ``classifier``: the head;
* ``encoder``: the base weights of the image tower's blocks with index >= l_ft (from 0) and of everything after them:
  final norm, pooler, projection. l_ft = -1 is the whole encoder with its embeddings; at or above the number of blocks
  it is nothing, and so it is without l_ft (None).

In the base session, pet and classifier train from the start and the encoder joins them at epoch e_ft, in one run of the
optimiser: two groups exist from the first step on, at rates lr and lr · encoder_lr_factor, and an optimiser passes over
tensors without a gradient. In an incremental session the encoder stays frozen, and pet, classifier or both train.

What comes after block l is not read off names, which differ from library to library: it is what a gradient reaches when
the input of block l is cut off from the graph, found with one pass over a blank picture.

For ViT-B/16 with LoRA of rank 16 on q and v: pet 12 · 2 · 16 · (768 + 768) = 589,824, classifier 768 C, encoder
(12 - l_ft) · 7,087,872 + 1,536 (final norm) + 590,592 (pooler, where there is one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from ...adapters.preserve import preserved
from ...errors import UserError

PartName = Literal["pet", "classifier", "encoder"]
Parameters = dict[str, nn.Parameter]


@dataclass(frozen=True)
class Parts:
    """The parameters of a student, by name inside the backbone or the head.

    Attributes:
        pet: of the adapter; empty without one.
        classifier: of the head.
        encoder: base weights that controlled fine-tuning lets train.
    """

    pet: Parameters
    classifier: Parameters
    encoder: Parameters

    @classmethod
    def of(cls, model: nn.Module, head: nn.Module, l_ft: int | None) -> Parts:
        """The parts of a backbone, attached or not, with a head, as they are right after attaching.

        A head that grows has other parameters afterwards: ask again.

        Raises:
            UserError: there is no such block, or the backbone has no known blocks.
        """
        return cls(adapter_parameters(model), dict(head.named_parameters()), encoder_parameters(model, l_ft))

    def train(self, *names: PartName) -> None:
        """Let these parts train, and nothing else of the three."""
        for name in ("pet", "classifier", "encoder"):
            part: Parameters = getattr(self, name)
            for parameter in part.values():
                parameter.requires_grad_(name in names)

    def groups(self, groups: Sequence[Mapping[str, Any]], lr: float, encoder_lr_factor: float) -> list[dict[str, Any]]:
        """A task's optimiser groups with the encoder's parameters, frozen ones included, in one of their own.

        Args:
            groups: what ``Task.parameter_groups`` gives: they keep the run's rate.
            lr: the run's rate.
            encoder_lr_factor: the encoder's rate is this times `lr`.
        """
        own = {id(parameter) for parameter in self.encoder.values()}
        others = [{**group, "params": [p for p in group["params"] if id(p) not in own]} for group in groups]
        return [*others, {"params": list(self.encoder.values()), "lr": lr * encoder_lr_factor}]


def adapter_parameters(model: nn.Module) -> Parameters:
    """The adapter's tensors that require gradients now, by name in the backbone; none without an adapter."""
    prefix = adapter_prefix(model)
    named = backbone_of(model).named_parameters()
    return {name: p for name, p in named if prefix and prefix in name and p.requires_grad}


def encoder_parameters(model: nn.Module, l_ft: int | None) -> Parameters:
    """Base weights of the image tower's blocks from `l_ft` on and of what comes after them, by name in the backbone.

    Args:
        model: a backbone, attached or not.
        l_ft: index of the first block; -1 for the whole encoder, embeddings included; None for nothing.

    Raises:
        UserError: `l_ft` is below -1, or the backbone has no known blocks.
    """
    if l_ft is None:
        return {}
    backbone, prefix = backbone_of(model), adapter_prefix(model)
    if l_ft < -1:
        raise UserError(f"l_ft={l_ft}: give the index of a block, from 0, or -1 for the whole encoder.")
    if l_ft >= 0 and "vision" not in backbone.towers:
        raise UserError(f"l_ft={l_ft}: backbone '{backbone.name}' has no known blocks; set l_ft=-1 for all of it.")
    blocks = backbone.towers["vision"].blocks if l_ft >= 0 else ()
    if l_ft >= 0 and l_ft >= len(blocks):
        return {}
    named = backbone.named_parameters()
    base = {name: p for name, p in named if p.is_floating_point() and not (prefix and prefix in name)}
    weight, size = next(iter(base.values())), backbone.preprocess.size
    pixels = weight.new_zeros(1, 3, size, size)
    with preserved(model), torch.enable_grad():
        model.eval()
        for parameter in base.values():
            parameter.requires_grad_()
        with _cut(backbone.get_submodule(blocks[l_ft])) if blocks else nullcontext():
            features = backbone.encode_image(pixels)
        gradients = torch.autograd.grad(features.sum(), list(base.values()), allow_unused=True)
    return {name: p for (name, p), gradient in zip(base.items(), gradients, strict=True) if gradient is not None}


def backbone_of(model: nn.Module) -> Any:
    """The backbone inside a model with adapters; a backbone itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def adapter_prefix(model: nn.Module) -> str | None:
    """What the names of all adapter tensors of `model` contain; None without an adapter."""
    return model.base_model.prefix if isinstance(model, PeftModel) else None


def _cut(block: nn.Module) -> Any:
    """Context in which no gradient leaves `block` by its input."""

    def detach(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.detach() if isinstance(x, Tensor) else x for x in inputs)

    return block.register_forward_pre_hook(detach)
