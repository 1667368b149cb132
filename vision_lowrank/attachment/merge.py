"""``merge``: fold adapters into the weights, so that the adapted model costs exactly what the base costs.

W' = W + Σ_active ΔW, computed in float32 or wider and cast to W's type once; then q, k and v are fused back into the
library's own attention. What remains is the library's own model with other numbers.
"""

from __future__ import annotations

import copy

import torch
from peft import PeftModel

from ..adapters.ownership import check_owned
from ..adapters.tuner import AdapterTuner, tuner_layers
from ..attention.split import fuse_attention
from ..backbones.adapted import adapted, uncompiled, unwrapped
from ..backbones.base import Backbone
from ..errors import UserError


def merge(model: PeftModel, in_place: bool = False) -> Backbone:
    """Return the backbone with the active adapters folded in, no adapter modules left and attention fused back.

    Args:
        model: what :func:`vision_lowrank.attach` or ``load`` returned, compiled or wrapped or not.
        in_place: use the model's own weights, which saves the memory of a copy; `model` is used up.

    Returns:
        A frozen backbone; its ``fingerprint`` is that of the merged weights.

    Raises:
        UserError: the method cannot be merged, or a merged weight is not finite.
    """
    model = unwrapped(model)
    if not adapted(model):
        raise UserError(f"merge needs a model with adapters, not a {type(model).__name__}: see vision_lowrank.attach.")
    if not in_place:
        model = copy.deepcopy(model)
    model = uncompiled(model)
    method = getattr(model.peft_type, "value", model.peft_type)
    if isinstance(model.base_model, AdapterTuner):
        model.base_model._check_merge_allowed()
    check_owned(model)
    bases = [(layer.get_base_layer(), layer.get_base_layer().weight.dtype) for _, layer in tuner_layers(model)]
    for (_, layer), (_, dtype) in zip(tuner_layers(model), bases, strict=True):
        layer.to(torch.promote_types(dtype, torch.float32))
    try:
        backbone = model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"{method} cannot be merged into the weights: {str(error).splitlines()[0]}") from error
    for base, dtype in bases:
        base.to(dtype)
    fuse_attention(backbone)
    backbone.requires_grad_(False)
    backbone.take_identity()
    return backbone
