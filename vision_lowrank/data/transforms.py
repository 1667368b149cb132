"""Pictures to tensors: what a set of weights expects, and the augmentations built on it.

A :class:`Preprocess` is the input specification of pretrained weights. Every pipeline made from it maps an RGB
``PIL.Image`` of any size to a (3, size, size) float32 tensor, with y = (x / 255 - mean) / std per channel.
All randomness is drawn from torch's global generator, so a seeded generator gives the same tensor again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from ..errors import UserError, near_miss
from .images import LONGEST

Transform: TypeAlias = Callable[[Image.Image], Tensor]

_SLENDER = 32


@dataclass(frozen=True)
class Preprocess:
    """The input that a set of weights expects.

    Attributes:
        size: side of the square input in pixels.
        mean: per-channel mean of the normalisation, for values in [0, 1].
        std: per-channel standard deviation of the normalisation.
        interpolation: name of a torchvision ``InterpolationMode``: ``bicubic``, ``bilinear``, ``nearest``, ``lanczos``.
        crop_pct: share of the resized short side that the centre crop keeps.
        resize: ``shortest`` keeps the aspect ratio and crops the centre, ``squash`` scales both sides to `size`.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    resize: Literal["shortest", "squash"] = "shortest"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        modes = [mode.value for mode in InterpolationMode]
        if self.interpolation not in modes:
            hint = near_miss(self.interpolation, modes)
            raise UserError(f"unknown interpolation '{self.interpolation}'.{hint} Known: {', '.join(modes)}.")
        if self.resize not in ("shortest", "squash"):
            raise UserError(f"unknown resize '{self.resize}': use 'shortest' or 'squash'.")

    def evaluation(self) -> Transform:
        """Build the deterministic pipeline: resize, centre crop, normalise."""
        if self.resize == "squash":
            fit = [_shortened, v2.Resize((self.size, self.size), self._mode)]
        else:
            fit = [_middle, v2.Resize(round(self.size / self.crop_pct), self._mode), v2.CenterCrop(self.size)]
        return v2.Compose([*fit, *self._to_tensor()])

    def training(
        self,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        *,
        picture: Callable[[Image.Image], Image.Image] | None = None,
        pixels: Callable[[Tensor], Tensor] | None = None,
    ) -> Transform:
        """Build the few-shot recipe of CoOp and CLIP-LoRA: random resized crop and horizontal flip.

        Args:
            scale: smallest and largest share of the picture's area that a crop keeps.
            flip: probability of a horizontal flip.
            picture: a further step, on the flipped crop (size, size).
            pixels: a further step, on the normalised tensor (3, size, size).
        """
        crop = v2.RandomResizedCrop(self.size, scale=scale, interpolation=self._mode)
        before, after = ([step] if step else [] for step in (picture, pixels))
        return v2.Compose([crop, v2.RandomHorizontalFlip(flip), *before, *self._to_tensor(), *after])

    def pretraining(self) -> Transform:
        """Build a strong pipeline to pretrain small models contrastively that must carry over to other drawing styles.

        Shape survives (crops keep half the area or more, rotations stay small, no flip: captions such as "left arrow"
        name a side); palette, outline weight, shading and sharpness do not. Meant for pictures of about 64 px: every
        step before the crop works at the picture's own size.
        """
        warp = v2.RandomAffine(15, translate=(0.06, 0.06), shear=8, interpolation=InterpolationMode.BILINEAR, fill=255)
        shading = [v2.RandomPosterize(4, p=1.0), v2.RandomSolarize(200, p=1.0), v2.RandomAutocontrast(p=1.0)]
        return v2.Compose(
            [
                v2.RandomApply([warp], p=0.5),
                v2.RandomApply([v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.7, hue=0.08)], p=0.8),
                v2.RandomGrayscale(0.15),
                v2.RandomApply([v2.RandomChoice(shading)], p=0.15),
                v2.RandomResizedCrop(self.size, scale=(0.5, 1.0), ratio=(0.85, 1.18), interpolation=self._mode),
                *self._to_tensor(blur=v2.RandomApply([v2.GaussianBlur(3, sigma=(0.3, 1.0))], p=0.2)),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Build the preprocessing from its dictionary, the inverse of :meth:`to_dict`.

        Raises:
            UserError: a key is unknown, or `size`, `mean` or `std` is missing.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"unknown preprocess key '{key}'.{near_miss(key, known)} Known: {', '.join(known)}.")
        for key in ("size", "mean", "std"):
            if key not in values:
                raise UserError(f"preprocess lacks '{key}': give the value that the weights were trained with.")
        return cls(**values)

    @property
    def _mode(self) -> InterpolationMode:
        return InterpolationMode(self.interpolation)

    def _to_tensor(self, blur: v2.Transform | None = None) -> list[v2.Transform]:
        scaled = v2.ToDtype(torch.float32, scale=True)
        return [v2.ToImage(), scaled, *([blur] if blur else []), v2.Normalize(self.mean, self.std), v2.ToPureTensor()]


def _middle(picture: Image.Image) -> Image.Image:
    """Cut a picture that is over 32 times as long as wide to its middle: a centre crop sees no more of it."""
    width, height = picture.size
    most = _SLENDER * min(width, height)
    if max(width, height) <= most:
        return picture
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return picture.crop((left, top, min(width, left + most), min(height, top + most)))


def _shortened(picture: Image.Image) -> Image.Image:
    """Average sides beyond :data:`.images.LONGEST` down: resizing makes an intermediate of that length."""
    factors = (-(-picture.width // LONGEST), -(-picture.height // LONGEST))
    return picture.reduce(factors) if max(factors) > 1 else picture
