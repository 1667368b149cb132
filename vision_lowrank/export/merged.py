"""``export_merged``: the adapted backbone as one file of ordinary weights, at the base's cost.

The tensors are those of the library's own model with W + ΔW in place of W, or the trained W where the base itself was
trained, and attention fused back, under the library's own names: ``load_state_dict`` of
``timm.create_model(arch, num_classes=0)`` or of the open_clip model takes them, and so does
``load_backbone(name, weights=file)``.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

from peft import PeftModel

from ..attachment.merge import merge
from ..attention.split import fuse_attention
from ..backbones.adapted import uncompiled, unwrapped
from ..backbones.base import Backbone
from .tensors import file_in, save_tensors

MODEL = "model.safetensors"


def export_merged(model: PeftModel | Backbone, out: str | os.PathLike) -> Path:
    """Write the backbone with the active adapters merged in; a classifier's head is not part of it.

    Args:
        model: what ``attach`` or ``load`` returned, or a backbone whose own weights were trained; it stays as it is.
        out: a ``.safetensors`` file, or a folder for ``model.safetensors``.

    Returns:
        The file. Its header names the backbone and the fingerprint of the merged weights.

    Raises:
        UserError: the method cannot be merged, a merged weight is not finite, or the file cannot be written.
    """
    model = unwrapped(model)
    if isinstance(model, Backbone):
        plain = fuse_attention(uncompiled(copy.deepcopy(model)))
        plain.take_identity()
    else:
        plain = merge(model)
    about = {"backbone": plain.name, "fingerprint": plain.fingerprint}
    return save_tensors(file_in(Path(out), MODEL), plain.model.state_dict(), about)
