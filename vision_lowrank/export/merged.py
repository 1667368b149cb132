"""``export_merged``: the adapted backbone as one file of ordinary weights, at the base's cost.

The tensors are those of the library's own model with W + ΔW in place of W and attention fused back, under the
library's own names: ``load_state_dict`` of ``timm.create_model(arch, num_classes=0)`` or of the open_clip model takes
them, and so does ``load_backbone(name, weights=file)``.
"""

from __future__ import annotations

import os
from pathlib import Path

from peft import PeftModel

from ..adapters.merge import merge
from .tensors import file_in, save_tensors

MODEL = "model.safetensors"


def export_merged(model: PeftModel, out: str | os.PathLike) -> Path:
    """Write the backbone with the active adapters merged in; a classifier's head is not part of it.

    Args:
        model: what ``attach`` or ``load`` returned; it stays as it is.
        out: a ``.safetensors`` file, or a folder for ``model.safetensors``.

    Returns:
        The file. Its header names the backbone and the fingerprint of the merged weights.

    Raises:
        UserError: the method cannot be merged, a merged weight is not finite, or the file cannot be written.
    """
    merged = merge(model)
    about = {"backbone": merged.name, "fingerprint": merged.fingerprint}
    return save_tensors(file_in(Path(out), MODEL), merged.model.state_dict(), about)
