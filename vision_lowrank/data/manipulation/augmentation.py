"""Random changes of training pictures that give nothing away: a real picture and its edits get the same ones.

A detector learns whatever tells edited pictures from real ones; were only one of two twins recompressed, resized or
blurred, it would learn that. So an augmentation is *drawn* first, and what was drawn is a plain function of picture,
mask and boxes, which is then applied to both twins::

    change = TwinAugmentation().draw(rng)
    real, edited = change(picture), change(edit, mask, boxes)

    twins   flip (p 0.5), then with p 0.5 one of: JPEG of quality 60 to 100, resizing by 0.5 to 1, WebP of 60 to 100.
            No colour and no blur.                                            [recipe of the ManipShield card]
    imdl    scale by 0.8 to 1.2; copy-move (p 0.1); inpainting (p 0.1); flips in x and in y (p 0.5 each); brightness
            and contrast by up to 10 %; JPEG of 70 to 100 (p 0.2); a turn by 90, 180 or 270 degrees (p 0.5); Gaussian
            blur of 3, 5 or 7 (p 0.2).                                        [IMDL-BenCo, arXiv 2406.10580]

The second edits pictures itself: its mask then covers the new region as well, and a real picture's label must follow
(:func:`label_of`). Where a mask is not annotated, it makes no such edit. The sizes of regions are this project's.

A flip comes before a codec, whose blocks start at the top left in every file there is. Picture, mask (nearest) and
boxes go through the same geometry. Everything is drawn from a NumPy generator or a seed, nothing from global state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol, TypeAlias

import numpy as np
from PIL import Image

from ...errors import UserError, near_miss
from ..boxes import Boxes
from .base import EDITED, REAL
from .robustness import Degradation

Sample: TypeAlias = tuple[Image.Image, np.ndarray | None, Boxes | None]
Step: TypeAlias = Callable[[Sample, np.random.Generator], Sample]
Rng: TypeAlias = np.random.Generator | int

RADIUS = 3  # pixels that inpainting looks at


@dataclass(frozen=True)
class Change:
    """An augmentation that was drawn: the same function of whatever it is given.

    Attributes:
        steps: what happens, in order.
        seed: what steps draw from that depend on the size of a picture.
    """

    steps: tuple[Step, ...]
    seed: int

    def __call__(self, image: Image.Image, mask: np.ndarray | None = None, boxes: Boxes | None = None) -> Sample:
        """Change picture, mask and boxes.

        Args:
            image: RGB.
            mask: (H, W) bool; None = not annotated, and stays so.
            boxes: with the size of the picture; None = not annotated, and stays so.
        """
        rng, sample = np.random.default_rng(self.seed), (image, mask, boxes)
        for step in self.steps:
            sample = step(sample, rng)
        return sample


class Augmentation(Protocol):
    """What draws changes."""

    def draw(self, rng: Rng) -> Change:
        """Draw a change, from a generator, which moves on, or from a seed."""
        ...


@dataclass(frozen=True)
class TwinAugmentation:
    """The recipe ``twins``.

    Attributes:
        jpeg: smallest and largest quality.
        resize: smallest and largest factor of both sides.
        webp: smallest and largest quality.
        probability: of one of the three.
        flip: probability of a horizontal flip.
    """

    jpeg: tuple[int, int] = (60, 100)
    resize: tuple[float, float] = (0.5, 1.0)
    webp: tuple[int, int] = (60, 100)
    probability: float = 0.5
    flip: float = 0.5

    def draw(self, rng: Rng) -> Change:
        """Draw a change, see :class:`Augmentation`."""
        rng = np.random.default_rng(rng)
        steps: list[Step] = [_flip_x] if rng.random() < self.flip else []
        if rng.random() < self.probability:
            name = ("jpeg", "resize", "webp")[rng.integers(3)]
            level = rng.uniform(*self.resize) if name == "resize" else _quality(rng, getattr(self, name))
            steps.append(_degrade(Degradation(name, level)))
        return Change(tuple(steps), _seed(rng))


@dataclass(frozen=True)
class ImdlAugmentation:
    """The recipe ``imdl``.

    Attributes:
        scale: both sides change by up to this share.
        copy_move: probability that a rectangle is copied to another place.
        inpainting: probability that a rectangle is painted over from its surroundings; needs OpenCV.
        region: smallest and largest side of those rectangles, as shares of the picture's.
        flip: probability of a flip, in x and in y.
        light: brightness changes by up to this share of white, contrast by up to this share of itself.
        jpeg: smallest and largest quality.
        compressed: probability of JPEG.
        turned: probability of a turn.
        blur: kernels.
        blurred: probability of a blur.

    Raises:
        UserError: OpenCV is not installed.
    """

    scale: float = 0.2
    copy_move: float = 0.1
    inpainting: float = 0.1
    region: tuple[float, float] = (0.05, 0.3)
    flip: float = 0.5
    light: float = 0.1
    jpeg: tuple[int, int] = (70, 100)
    compressed: float = 0.2
    turned: float = 0.5
    blur: tuple[int, ...] = (3, 5, 7)
    blurred: float = 0.2

    def __post_init__(self) -> None:
        if self.inpainting and find_spec("cv2") is None:
            raise UserError(
                "augmentation 'imdl' inpaints with OpenCV, which is not installed: "
                'pip install "vision-lowrank[manipulation]", or set its inpainting to 0.'
            )

    def draw(self, rng: Rng) -> Change:
        """Draw a change, see :class:`Augmentation`."""
        rng = np.random.default_rng(rng)
        brightness, contrast = rng.uniform(-self.light, self.light, size=2)
        # Every value is drawn whether it is used or not, so that one probability does not move the other draws.
        steps: list[tuple[float, Step]] = [
            (1, _degrade(Degradation("resize", 1 + rng.uniform(-self.scale, self.scale)))),
            (self.copy_move, _new_region(_copied, self.region)),
            (self.inpainting, _new_region(_inpainted, self.region)),
            (self.flip, _flip_x),
            (self.flip, _flip_y),
            (1, _lit(brightness, contrast)),
            (self.compressed, _degrade(Degradation("jpeg", _quality(rng, self.jpeg)))),
            (self.turned, _turn(int(rng.integers(1, 4)))),
            (self.blurred, _degrade(Degradation("gaussian_blur", int(rng.choice(self.blur))))),
        ]
        happens = rng.random(len(steps))
        chosen = [step for (probability, step), chance in zip(steps, happens, strict=True) if chance < probability]
        return Change(tuple(chosen), _seed(rng))


AUGMENTATIONS: dict[str, type[TwinAugmentation] | type[ImdlAugmentation]] = {
    "twins": TwinAugmentation,
    "imdl": ImdlAugmentation,
}


def augmentation(name: str) -> Augmentation:
    """Build a recipe by name, with its standard values.

    Raises:
        UserError: there is none of that name.
    """
    if name not in AUGMENTATIONS:
        known = ", ".join(AUGMENTATIONS)
        raise UserError(f"unknown augmentation '{name}'.{near_miss(name, AUGMENTATIONS)} Known: {known}.")
    return AUGMENTATIONS[name]()


def label_of(label: int, mask: np.ndarray | None) -> int:
    """Label a picture after augmentation: a real one is edited once its mask says so."""
    return EDITED if label == REAL and mask is not None and bool(mask.any()) else label


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63))


def _quality(rng: np.random.Generator, span: tuple[int, int]) -> int:
    return int(rng.integers(span[0], span[1] + 1))


def _degrade(degradation: Degradation) -> Step:
    def step(sample: Sample, rng: np.random.Generator) -> Sample:
        image, mask, boxes = sample
        return degradation.apply(image), *degradation.apply_truth(mask, boxes, *image.size)

    return step


def _flip_x(sample: Sample, rng: np.random.Generator) -> Sample:
    image, mask, boxes = sample
    return (
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        None if mask is None else np.ascontiguousarray(mask[:, ::-1]),
        None if boxes is None else boxes.flip(),
    )


def _quarter(sample: Sample) -> Sample:
    """Turn a quarter to the left: (x, y) goes to (y, width - x)."""
    image, mask, boxes = sample
    return (
        image.transpose(Image.Transpose.ROTATE_90),
        None if mask is None else np.ascontiguousarray(np.rot90(mask)),
        None if boxes is None else boxes.turn(),
    )


def _turn(quarters: int) -> Step:
    def step(sample: Sample, rng: np.random.Generator) -> Sample:
        for _ in range(quarters):
            sample = _quarter(sample)
        return sample

    return step


def _flip_y(sample: Sample, rng: np.random.Generator) -> Sample:
    return _flip_x(_quarter(_quarter(sample)), rng)


def _lit(brightness: float, contrast: float) -> Step:
    def step(sample: Sample, rng: np.random.Generator) -> Sample:
        image, mask, boxes = sample
        values = np.asarray(image, dtype=np.float32) * (1 + contrast) + 255 * brightness
        return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8)), mask, boxes

    return step


def _new_region(edit: Callable[..., np.ndarray], sides: tuple[float, float]) -> Step:
    """Build the edit of a random rectangle, which goes into the mask and, where boxes are annotated, is one of them."""

    def step(sample: Sample, rng: np.random.Generator) -> Sample:
        image, mask, boxes = sample
        if mask is None:
            return sample
        width, height = (max(1, round(length * rng.uniform(*sides))) for length in image.size)
        left, top = _place(rng, image.size, (width, height))
        pixels, edited = np.array(image), np.zeros(mask.shape, dtype=bool)
        edited[top : top + height, left : left + width] = True
        changed = Image.fromarray(edit(pixels, edited, (left, top, width, height), rng))
        box = Boxes([(left, top, left + width, top + height)])
        return changed, mask | edited, None if boxes is None else boxes.join(box)

    return step


def _place(rng: np.random.Generator, size: tuple[int, int], part: tuple[int, int]) -> tuple[int, int]:
    """Draw left and top of a random place of a `part` of a picture."""
    left, top = (int(rng.integers(whole - length + 1)) for whole, length in zip(size, part, strict=True))
    return left, top


def _copied(
    pixels: np.ndarray, edited: np.ndarray, region: tuple[int, int, int, int], rng: np.random.Generator
) -> np.ndarray:
    width, height = region[2:]
    left, top = _place(rng, pixels.shape[1::-1], (width, height))
    source = pixels[top : top + height, left : left + width].reshape(-1, 3).copy()
    pixels[edited] = source
    return pixels


def _inpainted(
    pixels: np.ndarray, edited: np.ndarray, region: tuple[int, int, int, int], rng: np.random.Generator
) -> np.ndarray:
    import cv2  # here, as it is an optional dependency

    method = (cv2.INPAINT_TELEA, cv2.INPAINT_NS)[rng.integers(2)]
    return cv2.inpaint(pixels, edited.astype(np.uint8), RADIUS, method)
