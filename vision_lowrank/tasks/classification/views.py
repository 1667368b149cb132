"""Several random views of each picture in one batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...data.base import ImageSet, TransformedImages
from ..base import Batch

# Keeps the augmentations of one view apart from those of another view, seed and position.
STRIDE = 2**31


class Views(Dataset):
    """:class:`TransformedImages` with V views of each picture: ``image`` is (V, 3, H, W), the first as with one view.

    Like there, every view is a function of (seed, position) alone.
    """

    def __init__(self, images: ImageSet, transform: Callable[[Image.Image], Tensor], seed: int, views: int) -> None:
        self.views = [TransformedImages(images, transform, seed + STRIDE * view) for view in range(views)]

    def __len__(self) -> int:
        return len(self.views[0])

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Tensor | int]:
        first, *others = [view[item] for view in self.views]
        return first | {"image": torch.stack([each["image"] for each in (first, *others)])}


def training_images(
    images: ImageSet, transform: Callable[[Image.Image], Tensor], seed: int, views: int
) -> TransformedImages | Views:
    """Pictures with one view or several."""
    return TransformedImages(images, transform, seed) if views == 1 else Views(images, transform, seed, views)


def rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Pictures (V B, 3, H, W) and labels (V B,) of a batch of one view (B, 3, H, W) or several (B, V, 3, H, W)."""
    image, label = batch["image"], batch["label"]
    if image.dim() == 4:
        return image, label
    return image.flatten(0, 1), label.repeat_interleave(image.shape[1])
