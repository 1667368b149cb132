"""Several random views of each picture in one batch, mixed with other pictures or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...data.base import ImageSet
from ...data.loading import TransformedImages
from ...data.mixing import MixedImages
from ...engine.task import Batch

# Keeps the augmentations of one view apart from those of another view, seed and position. torch's generator looks at
# the low 32 bits of a seed only, so there is room for 16 views.
STRIDE = 2**28


class Views(Dataset):
    """V data sets of the same pictures as one: ``image`` is (V, 3, H, W), the first as with one view.

    ``label`` is the picture's, or (V, C) weights where the data sets give weights (C,).
    """

    def __init__(self, views: Sequence[TransformedImages | MixedImages]) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views[0])

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        samples: list[dict[str, Any]] = [view[item] for view in self.views]
        stacked = {"image": torch.stack([sample["image"] for sample in samples])}
        if isinstance(samples[0]["label"], Tensor):
            stacked["label"] = torch.stack([sample["label"] for sample in samples])
        return samples[0] | stacked


def training_images(
    images: ImageSet,
    transform: Callable[[Image.Image], Tensor],
    seed: int,
    views: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mixed: int = 1,
) -> TransformedImages | MixedImages | Views:
    """Return pictures with one view or several, each a function of (seed, position) alone.

    Args:
        images: the pictures.
        transform: of one picture, random.
        seed: of the run.
        views: how many of each picture.
        mixup: alpha of Mixup, 0 for none; every view has a partner of its own.
        cutmix: alpha of CutMix, 0 for none.
        mixed: how many of the views are mixed: the first ones.
    """
    plain = [TransformedImages(images, transform, seed + STRIDE * view) for view in range(views)]
    data: Sequence[TransformedImages | MixedImages] = plain
    if mixup or cutmix:
        data = [MixedImages(each, mixup, cutmix) for each in plain[:mixed]]
        data += [MixedImages(each) for each in plain[mixed:]]
    return data[0] if views == 1 else Views(data)


def rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return pictures and labels of a batch, one row for each view.

    Args:
        batch: ``image`` (B, 3, H, W) or (B, V, 3, H, W); ``label`` (B,) class numbers, or weights (B, C) or (B, V, C).

    Returns:
        (V B, 3, H, W), and (V B,) or (V B, C).
    """
    image, label = batch["image"], batch["label"]
    if image.dim() == 4:
        return image, label
    return image.flatten(0, 1), label.repeat_interleave(image.shape[1]) if label.dim() == 1 else label.flatten(0, 1)
