"""``load_backbone``: the one way to a pretrained model, whatever library it comes from.

A family registers a function ``(arch, weights, **options) -> Backbone`` as a ``backbone`` part under the name that
comes before the colon.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import UserError
from ..registry import registry
from .base import Backbone


def load_backbone(name: str, weights: str | os.PathLike[str] | None = None, **options: Any) -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: ``tiny-clip``, ``open_clip:<architecture>``, ``timm:<model>`` or ``hf:<multimodal LLM>``.
        weights: ``random`` (drawn from torch's global generator); ``pretrained``, the library's default; a tag of the
            library such as ``openai``; or a local ``.safetensors`` or ``.pt`` file. None is the family's default:
            the shipped weights for tiny-clip, random for the others.
        options: ``image_size``, the side of the input in pixels, which every family knows; others of the family or of
            the library's own constructor, such as ``drop_path_rate`` for timm.

    Raises:
        UserError: the name, the weights or an option is unknown, or a download failed.
        ArtefactError: a weight file is damaged or belongs to another architecture.
    """
    family, colon, arch = name.partition(":")
    target = registry.get("backbone", family).target
    if colon and not arch:
        raise UserError(f"backbone '{name}' lacks an architecture after the colon, as in 'open_clip:ViT-B-16'.")
    # A backbone remembers its weights as text, which artefacts hold.
    return target(arch, None if weights is None else os.fspath(weights), **options)
