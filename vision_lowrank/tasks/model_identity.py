"""What a saved model's answers depend on, as a short text: two models of one identity say the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..attachment.folder import checksum
from ..backbones.adapted import adapted, adapter_names, backbone_of

if TYPE_CHECKING:
    from .saved import AdaptedModel


def identity_of(model: AdaptedModel, parts: Mapping[str, Tensor], facts: object) -> str:
    """Compute 16 hex digits that change with anything that a saved model's answers depend on.

    Args:
        model: its base and adapters count.
        parts: tensors of what it has beside them.
        facts: what else counts.
    """
    states = dict(parts)
    states |= {name: p for name, p in backbone_of(model.backbone).named_parameters() if name in model.trained_base}
    weights = [checksum(states), *adapter_checksums(model.backbone)]
    return hashlib.sha256(f"{model.fingerprint} {weights} {facts}".encode()).hexdigest()[:16]


def adapter_checksums(model: nn.Module) -> list[str]:
    """Compute the SHA-256 of the tensors of each adapter of a backbone, attached or in its linears.

    The tensors are as the adapter's folder has them.
    """
    if not adapted(model):
        return [model.factored] if model.factored else []
    from ..attachment.store import adapter_state  # where an adapter is attached, PEFT has been imported

    return [checksum(adapter_state(model, name)) for name in adapter_names(model)]
