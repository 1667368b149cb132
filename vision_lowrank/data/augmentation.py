"""How training pictures are augmented: the arms of a study, from nothing to heavy.

Paper: "Effectiveness of Data Augmentation for Parameter Efficient Tuning with Limited Data", arXiv 2303.02577, whose
augmentations of sentences are mapped to pictures. The operations are timm's and torchvision's; between a random
resized crop and a horizontal flip of the PIL picture (size, size) and its normalisation comes

    none                nothing; and no crop or flip either: the pipeline of the evaluation
    basic               nothing
    randaugment         RandAugment rand-m5-n1 (light)                               arXiv 1909.13719
    randaugment_heavy   RandAugment rand-m9-mstd0.5-inc1, n 2; after the normalisation, with probability 0.25, a box of
                        normal noise (random erasing)                                arXiv 1708.04896
    augmix              AugMix augmix-m3-w3, without its consistency loss            arXiv 1912.02781
    trivial_augment     TrivialAugmentWide                                           arXiv 2103.10158
    color_jitter        CoACT's: with probability 0.8, brightness, contrast and saturation times 0.6…1.4 and the hue
                        turned by up to 0.1 of its circle; then, with probability 0.2, grey  arXiv 2405.16625

Colours change before the normalisation, and what a rotation or a shift uncovers is filled with the mean colour. All
but the last turn, shear and invert pictures: like the flip, they may destroy the labels of digits, text and directions.

timm draws from Python's and NumPy's generators. :class:`FromTorch` makes them functions of torch's, so that for these
arms too a seeded torch generator gives the same tensor again, and puts them back.

Except for CoACT's, the settings are this project's (the paper has no pictures). timm's magnitudes are on a scale of
10; ``inc1`` makes every operation stronger as m rises. Without it, in ``randaugment``, m 5 leaves colour, contrast,
brightness and sharpness as they are, and posterises to 2 bits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torchvision.transforms import InterpolationMode, v2

from .transforms import Preprocess, Transform

Augmentation = Literal["none", "basic", "randaugment", "randaugment_heavy", "augmix", "trivial_augment", "color_jitter"]

RAND_LIGHT, RAND_HEAVY, AUGMIX = "rand-m5-n1", "rand-m9-n2-mstd0.5-inc1", "augmix-m3-w3"
ERASED = 0.25
# The noise of mstd may reach timm's end of the scale, 10, where it posterises to 0 bits, which Pillow refuses.
STRONGEST = 9.99
# ColorJitter's brightness, contrast, saturation and hue; the probabilities of it and of grey.
JITTER, JITTERED, GREY = (0.4, 0.4, 0.4, 0.1), 0.8, 0.2


def training_transform(
    preprocess: Preprocess,
    augmentation: Augmentation = "basic",
    crop: tuple[float, float] = (0.08, 1.0),
    flip: float = 0.5,
) -> Transform:
    """Build the training pipeline of one arm: RGB picture -> (3, size, size) float.

    Args:
        preprocess: what the weights expect.
        augmentation: the arm.
        crop: smallest and largest share of the area that the random crop keeps.
        flip: probability of a horizontal flip.
    """
    if augmentation == "none":
        return preprocess.evaluation()
    if augmentation == "basic":
        return preprocess.training(crop, flip)
    fill = tuple(round(255 * value) for value in preprocess.mean)
    if augmentation == "trivial_augment":
        trivial = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=list(fill))
        return preprocess.training(crop, flip, picture=trivial)
    if augmentation == "color_jitter":
        jitter = v2.RandomApply([v2.ColorJitter(*JITTER)], p=JITTERED)
        return preprocess.training(crop, flip, picture=v2.Compose([jitter, v2.RandomGrayscale(GREY)]))
    # Imported here: timm takes a second or two, and the other arms do without it.
    from timm.data.auto_augment import augment_and_mix_transform, rand_augment_transform
    from timm.data.random_erasing import RandomErasing

    if augmentation == "augmix":
        mix = augment_and_mix_transform(AUGMIX, {"img_mean": fill, "translate_pct": 0.3})
        return preprocess.training(crop, flip, picture=FromTorch(mix))
    if augmentation == "randaugment":
        light = rand_augment_transform(RAND_LIGHT, {"img_mean": fill})
        return preprocess.training(crop, flip, picture=FromTorch(light))
    heavy = rand_augment_transform(RAND_HEAVY, {"img_mean": fill, "magnitude_max": STRONGEST})
    erasing = RandomErasing(ERASED, mode="pixel", device="cpu")
    return preprocess.training(crop, flip, picture=FromTorch(heavy), pixels=FromTorch(erasing))


class FromTorch:
    """`step` with Python's and NumPy's global generators seeded by torch's for the time of the call."""

    def __init__(self, step: Callable[[Any], Any]) -> None:
        self.step = step

    def __call__(self, image: Any) -> Any:
        """Apply `step` to `image`."""
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is what timm draws from
        one, other = torch.randint(2**32, (2,)).tolist()
        random.seed(one)
        np.random.seed(other)  # noqa: NPY002
        try:
            return self.step(image)
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
