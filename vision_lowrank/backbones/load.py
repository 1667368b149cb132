"""``load_backbone``: the one way to a pretrained model, whatever library it comes from.

A family registers a function ``(arch, weights, **options) -> Backbone`` as a ``backbone`` part under the name that
comes before the colon.
"""

from __future__ import annotations

import os
from typing import Any

from ..config.marks import unsaid_weights
from ..errors import UserError
from ..modes import ordinary
from ..registry import registry
from .base import Backbone


@ordinary()
def load_backbone(name: str, weights: str | os.PathLike[str] | None = None, **options: Any) -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: ``tiny-clip``, ``open_clip:<architecture>``, ``timm:<model>`` or ``hf:<multimodal LLM>``.
        weights: ``pretrained``, the library's default; a tag of the library such as ``openai``; a local
            ``.safetensors`` or ``.pt`` file; or ``random``, drawn from torch's global generator. They must be said;
            None is for a model that ships with the package, such as tiny-clip, and means the shipped weights.
        options: ``image_size``, the side of the input in pixels, which every family knows; others of the family or of
            the library's own constructor, such as ``drop_path_rate`` for timm.

    Raises:
        UserError: the name, the weights or an option is unknown, the weights are not said, or a download failed.
        ArtefactError: a weight file is damaged or belongs to another architecture.
    """
    family, colon, arch = name.partition(":")
    target = registry.get("backbone", family).target
    if colon and not arch:
        raise UserError(f"backbone '{name}' lacks an architecture after the colon, as in 'open_clip:ViT-B-16'.")
    said = None if weights is None else os.path.expanduser(weights)  # as text, which artefacts hold
    if reason := unsaid_weights(name, said):
        raise UserError(reason)
    return target(arch, said, **options)
