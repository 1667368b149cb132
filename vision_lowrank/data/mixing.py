"""Mixup and CutMix: two pictures become one, and their labels too, in the same shares.

Papers: "mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412; "CutMix: Regularization Strategy to Train Strong
Classifiers with Localizable Features", arXiv 1905.04899. With pictures x (3, H, W) and one-hot labels y (C,)::

    λ ~ Beta(α, α)
    Mixup    x~ = λ x_i + (1 - λ) x_j
    CutMix   x~ = x_j inside a box, x_i outside it; the box is √(1-λ) H high and √(1-λ) W wide, its middle anywhere;
             what sticks out of the picture is cut off, and then λ := 1 - (pixels in the box) / (H W)
    both     y~ = λ y_i + (1 - λ) y_j,      loss = -Σ_c y~_c log p_c = λ CE_i + (1 - λ) CE_j

With both, each sample is mixed by the one or the other with probability 1/2.

Samples are mixed in the data set, each with a partner j drawn from all of it, and not within a batch (as timm's
``Mixup`` does, which needs even batches and one λ or one set of partners per batch). So a mixed sample is a function
of (seed, position), as every other augmented one: the same for all methods, batch sizes, workers and processes, and
after a resume; a batch may be odd or a single sample; and loader workers do the work. The price is a second picture to
read and augment. i and j are augmented independently; i as it would be without mixing. Only pictures are mixed: class
prompts stay what they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from .loading import TransformedImages

# Keeps a partner's augmentation apart from that of the picture it is mixed into; half the distance between two views.
PARTNER = 2**27
Box = tuple[int, int, int, int]


def mixup(one: Tensor, other: Tensor, share: float | Tensor) -> Tensor:
    """Compute share · one + (1 - share) · other, of pictures or labels of any one shape."""
    return share * one + (1 - share) * other


def cutmix(one: Tensor, other: Tensor, box: Box) -> tuple[Tensor, float]:
    """Paste the part of `other` in `box` into `one` (3, H, W); also return the share of pixels that are still `one`'s.

    Args:
        one: where to paste.
        other: what to paste from.
        box: top, bottom, left, right; empty where top = bottom or left = right.
    """
    top, bottom, left, right = box
    mixed = one.clone()
    mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / one[0].numel()


def random_box(height: int, width: int, share: float, rng: np.random.Generator) -> Box:
    """Draw a box of about 1 - share of the pixels around a random one, less what sticks out."""
    side = math.sqrt(1 - share)
    edges = []
    for length in (height, width):
        inside = round(side * length)
        first = int(rng.integers(length)) - inside // 2
        edges += [max(first, 0), min(first + inside, length)]
    top, bottom, left, right = edges
    return top, bottom, left, right


class MixedImages(Dataset):
    """`data` with every picture mixed: ``label`` becomes (C,) float weights that sum to 1.

    Args:
        data: the pictures; partners are drawn from all of them.
        mixup: α of Mixup; 0 = none.
        cutmix: α of CutMix; 0 = none. With neither, pictures are left alone and labels are one-hot.
    """

    def __init__(self, data: TransformedImages, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        self.data, self.mixup, self.cutmix = data, mixup, cutmix
        self.partners = TransformedImages(data.images, data.transform, data.seed + PARTNER)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        position = item[0] if isinstance(item, tuple) else item
        sample = self.data[item]
        image, label = sample["image"], self._one_hot(sample)
        if not (self.mixup or self.cutmix):
            return sample | {"label": label}
        rng = np.random.default_rng([self.data.seed, position])
        cut = rng.random() < 0.5 if self.mixup and self.cutmix else bool(self.cutmix)
        alpha = self.cutmix if cut else self.mixup
        share = float(rng.beta(alpha, alpha))
        partner = self.partners[position, int(rng.integers(len(self)))]
        if cut:
            box = random_box(*image.shape[1:], share, rng)
            image, share = cutmix(image, partner["image"], box)
        else:
            image = mixup(image, partner["image"], share)
        # A tensor, because λ + (1 - λ) is 1 to the last bit only where both are rounded to the labels' precision.
        return sample | {"image": image, "label": mixup(label, self._one_hot(partner), torch.tensor(share))}

    def _one_hot(self, sample: dict[str, Any]) -> Tensor:
        """Encode the label as weights (C,)."""
        return F.one_hot(torch.tensor(sample["label"]), len(self.data.images.classes)).float()
