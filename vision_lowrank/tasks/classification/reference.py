"""Reference features: what the model gives for a few training pictures of every class, kept beside a classifier.

They say later what an addition of classes changed on the old ones, without the old pictures::

    reference.safetensors    features (N, d) float32, as the image tower gives them, not normalised
                             labels   (N,)   int64, columns of the logits

A class has at most 20 pictures there, its first; classes may have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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


def save_reference(folder: Path, features: Tensor, labels: Tensor) -> None:
    """Keep the `features` (N, d) of the first 20 pictures of every class in `labels` (N,), in the order they have."""
    labels = labels.cpu().long()
    kept = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        kept[(labels == label).nonzero()[:PER_CLASS, 0]] = True
    features = features.detach().cpu().float()[kept]
    save_file({"features": features.contiguous(), "labels": labels[kept]}, folder / FILE)


def load_reference(folder: Path, classes: int, width: int | None = None) -> tuple[Tensor, Tensor] | None:
    """Load features (N, d) and labels (N,) that an artefact keeps; None where it keeps none.

    Args:
        folder: the artefact.
        classes: how many it has.
        width: d; None = any.

    Raises:
        ArtefactError: the file is damaged, or belongs to another artefact.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        state = load_file(path)
        features, labels = state["features"], state["labels"]
    except (OSError, SafetensorError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ArtefactError(f"{path}: cannot be read ({reason}): remove it or get a fresh copy.") from None
    fits = features.ndim == 2 and labels.shape == features.shape[:1] and width in (None, *features.shape[1:])
    if not fits or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
        raise ArtefactError(f"{path}: belongs to another artefact: remove it or get a fresh copy.")
    return features, labels
