"""Controlled fine-tuning: which parameters of a student train when.

Paper: CoACT, "Consistency-Guided Asynchronous Contrastive Tuning for Few-Shot Class-Incremental Tuning of Foundation
Models", arXiv 2405.16625. A student has three parts (:class:`SessionParameters`):

* ``pet``: the adapter's own trainable tensors;
* ``classifier``: the head;
* ``encoder``: the base weights of the image tower's blocks with index >= l_ft (from 0) and of everything after them:
  final norm, pooler, projection. l_ft = -1 is the whole encoder with its embeddings; at or above the number of blocks
  it is nothing, and so it is without l_ft (None).

In the base session, pet and classifier train from the start and the encoder joins them at epoch e_ft, in one run of the
optimiser: two groups exist from the first step on, at rates lr and lr · encoder_lr_factor, and an optimiser passes over
tensors without a gradient. In an incremental session the encoder stays frozen, and pet, classifier or both train.

For ViT-B/16 with LoRA of rank 16 on q and v: pet 12 · 2 · 16 · (768 + 768) = 589,824, classifier 768 C, encoder
(12 - l_ft) · 7,087,872 + 1,536 (final norm) + 590,592 (pooler, where there is one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ...attachment.parameters import Parameters, adapter_parameters, encoder_parameters

PartName = Literal["pet", "classifier", "encoder"]


@dataclass(frozen=True)
class SessionParameters:
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
    def of(cls, model: nn.Module, head: nn.Module, l_ft: int | None) -> SessionParameters:
        """Collect the parts of a backbone, attached or not, with a head, as they are right after attaching.

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
        """Return a task's optimiser groups with the encoder's parameters, frozen ones included, in one of their own.

        Args:
            groups: what ``Task.parameter_groups`` gives: they keep the run's rate.
            lr: the run's rate.
            encoder_lr_factor: the encoder's rate is this times `lr`.
        """
        own = {id(parameter) for parameter in self.encoder.values()}
        others = [{**group, "params": [p for p in group["params"] if id(p) not in own]} for group in groups]
        return [*others, {"params": list(self.encoder.values()), "lr": lr * encoder_lr_factor}]
