"""Pictures as tensors for a loader; apart from :mod:`.base`, which says what a data set is and needs no torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch.utils.data import Dataset

from .base import ImageSet


class TransformedImages(Dataset):
    """Pictures as tensors: ``self[position, index]`` or ``self[index]`` gives
    ``{"image": (3, H, W) float, "label": int, "index": int}``.

    The random state of a transform is a function of (`seed`, position) alone, so the same picture of the same epoch
    gets the same augmentation whatever the method, the number of workers or processes, and after a resume.
    """

    def __init__(self, images: ImageSet, transform: Callable[[Image.Image], torch.Tensor], seed: int = 0) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, torch.Tensor | int]:
        position, index = item if isinstance(item, tuple) else (item, item)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed((self.seed * 1_000_003 + position) % 2**63)
            image = self.transform(self.images.image(index))
        return {"image": image, "label": self.images.labels[index], "index": index}
