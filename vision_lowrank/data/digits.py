"""Handwritten digits: scikit-learn's 1,797 pictures of 8 x 8 pixels (UCI Optical Recognition of Handwritten Digits).

They come in the order in which they were collected, a few pictures of one writer after another, so cutting the list
into three consecutive blocks keeps most writers out of more than one split: train 0…999, val 1000…1296, test 1297…1796.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from ..config.schema import Section
from ..registry import register
from .base import ImageSet, Splits
from .options import Templates

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 64
TRAIN_END, VAL_END = 1000, 1297
WHITE, INK_LEVELS = 255, 16


class DigitsConfig(Section):
    """Options of ``data: {type: digits}``."""

    type: Literal["digits"] = "digits"
    templates: Templates = Field(("a handwritten digit {}.",), description="prompt templates, {} = class name")


@register(
    "data",
    "digits",
    summary="scikit-learn's handwritten digits, dark ink on white",
    config=DigitsConfig,
    gives="classes",
)
def digits(config: DigitsConfig) -> Splits:
    """Load the fixed split of the digits; keys are ``digits/0000`` to ``digits/1796``."""
    labels = tuple(int(label) for label in _arrays()[1])
    keys = tuple(f"digits/{index:04d}" for index in range(len(labels)))
    images = ImageSet("digits", CLASSES, labels, keys, _load)
    return Splits(
        train=images.subset(range(TRAIN_END)),
        val=images.subset(range(TRAIN_END, VAL_END)),
        tests={"digits": images.subset(range(VAL_END, len(images)))},
        templates=config.templates,
    )


@lru_cache(maxsize=1)
def _arrays() -> tuple[np.ndarray, np.ndarray]:
    """Load ink in 0…16 (1797, 8, 8) float64 and labels (1797,) int64."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images, data.target


def _load(key: str) -> Image.Image:
    ink = _arrays()[0][int(key.removeprefix("digits/"))]
    grey = Image.fromarray(np.rint(WHITE - ink * (WHITE / INK_LEVELS)).astype(np.uint8))
    return grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
