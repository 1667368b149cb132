"""Reference features: what the model gives for a few training pictures of every class, kept beside a classifier.

They say later what an addition of classes changed on the old ones, without the old pictures::

    reference.safetensors    features (N, d) float32, as the image tower gives them, not normalised
                             labels   (N,)   int64, columns of the logits

A class has at most 20 pictures there, its first; classes may have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...attachment.folder import read_tensors
from ...attachment.record import COPY
from ...data.base import ImageSet
from ...errors import ArtefactError
from ...modes import preserved

FILE = "reference.safetensors"
PER_CLASS = 20


@torch.no_grad()
def picture_features(
    model: nn.Module, images: ImageSet, batch_size: int = 64, show: Callable[[range], Iterable[int]] = iter
) -> Tensor:
    """Compute the image tower's features of the pictures in evaluation: (N, d) float32, on the CPU.

    Args:
        model: a backbone, attached or not.
        images: N pictures.
        batch_size: pictures per pass.
        show: gives the starts of the batches back one by one, perhaps with a progress bar.
    """
    parts, device = [], next(model.parameters()).device
    with preserved(model):
        model.eval()
        for start in show(range(0, len(images), batch_size)):
            batch = range(start, min(start + batch_size, len(images)))
            pixels = torch.stack([model.transform(images.image(index)) for index in batch]).to(device)
            parts.append(model.encode_image(pixels).float().cpu())
    return torch.cat(parts)


def reference_of(features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the `features` (N, d) of the first 20 pictures of every class in `labels` (N,), in the order they have,
    as the tensors of the file.
    """
    labels = labels.cpu().long()
    kept = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        kept[(labels == label).nonzero()[:PER_CLASS, 0]] = True
    features = features.detach().cpu().float()[kept]
    return {"features": features.contiguous(), "labels": labels[kept]}


def load_reference(
    folder: Path, about: Mapping[str, Any], classes: int, width: int | None = None
) -> tuple[Tensor, Tensor] | None:
    """Load features (N, d) and labels (N,) that an artefact keeps; None where it keeps none.

    Args:
        folder: the artefact.
        about: its ``artefact.json``, which says whether it keeps any.
        classes: how many it has.
        width: d; None = any.

    Raises:
        ArtefactError: the file is damaged, or belongs to another artefact.
    """
    path = folder / FILE
    if FILE not in about["tensors"] or not path.is_file():  # removed to save space
        return None
    state = read_tensors(path, about["tensors"][FILE])
    features, labels = (state.get(name, torch.empty(())) for name in ("features", "labels"))
    fits = features.ndim == 2 and labels.shape == features.shape[:1] and width in (None, *features.shape[1:])
    fits = fits and not labels.is_floating_point()
    if not fits or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
        raise ArtefactError(f"'{path}' belongs to another artefact; {COPY}.")
    return features, labels
