"""LoRAT's augmentation of a pair, in crop space (arXiv 2403.05231 and its code).

flip          each crop left to right with probability 1/2, independently
colour        each crop: brightness, contrast, saturation by factors U(0.6, 1.4), in random order, independently
one of three  grey, solarised at one half, or Gaussian blur of radius U(0.1, 2) pixels: the same for all

A small tracker that trains for hours, not for days, learns more from pairs that are changed less: all three shares can
be set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

BLUR = (0.1, 2.0)


@dataclass(frozen=True)
class Augmentation:
    """How much a pair is changed; the defaults are LoRAT's.

    Attributes:
        flip: probability that a crop is flipped.
        colours: most that brightness, contrast and saturation change, as shares.
        filters: probability of one of the three: grey, solarised, blurred.
    """

    flip: float = 0.5
    colours: float = 0.4
    filters: float = 1.0


def augment_pair(
    z: Tensor,
    x: Tensor,
    mask: Tensor,
    box: np.ndarray,
    generator: torch.Generator,
    how: Augmentation = Augmentation(),
) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """Augment crops in [0, 1] with what lies in them.

    Args:
        z: (T, 3, Hz, Wz) templates, one or more.
        x: (3, Hx, Wx) search crop.
        mask: (T, hz, wz) cells of the templates.
        box: (4,) xyxy in pixels of the search crop.
        generator: all randomness.
        how: how much.
    """
    *flips_z, flip_x = (torch.rand(len(z) + 1, generator=generator) < how.flip).tolist()
    z, mask = (torch.stack([c.flip(-1) if flip else c for c, flip in zip(all_of, flips_z, strict=True)])
               for all_of in (z, mask))  # fmt: skip
    if flip_x:
        x, width = x.flip(-1), x.shape[-1]
        box = np.array([width - box[2], box[1], width - box[0], box[3]])
    *crops, x = (jitter_colours(crop, generator, how.colours) for crop in (*z, x))
    choice, share = torch.rand(2, generator=generator).tolist()
    if choice < how.filters:
        radius = BLUR[0] + share * (BLUR[1] - BLUR[0])
        *crops, x = (_one_of_three(crop, int(3 * choice / how.filters), radius) for crop in (*crops, x))
    return torch.stack(crops), x, mask, box


def jitter_colours(crop: Tensor, generator: torch.Generator, most: float = Augmentation.colours) -> Tensor:
    """Change brightness, contrast and saturation of a crop (3, H, W) in [0, 1] by up to `most`, in random order."""
    factors = (1 + most * (2 * torch.rand(3, generator=generator) - 1)).tolist()
    changes = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)
    for number in torch.randperm(3, generator=generator).tolist():
        crop = changes[number](crop, factors[number])
    return crop


def _one_of_three(crop: Tensor, choice: int, radius: float) -> Tensor:
    if choice == 0:
        return TF.rgb_to_grayscale(crop, num_output_channels=3)
    if choice == 1:
        return TF.solarize(crop, 0.5)
    side = 2 * int(np.ceil(2 * radius)) + 1
    return TF.gaussian_blur(crop, [side, side], [radius, radius])
