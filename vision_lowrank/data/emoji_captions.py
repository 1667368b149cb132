"""All emoji of some styles with captions: what tiny-clip is pretrained on.

Every picture has three captions: its name, its sub-group, and both ("grinning face", "face smiling", "grinning face,
face smiling"). The test sets are all emoji of each style with the sub-groups as classes, so that a zero-shot accuracy
per style comes out; there is no validation set, since nothing is selected.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from ..config.schema import Section
from ..registry import register
from .base import ImageSet, Splits
from .emoji import STYLES, Style, caption_parts, emoji_images
from .options import Templates


class EmojiCaptionsConfig(Section):
    """Options of ``data: {type: emoji_captions}``."""

    type: Literal["emoji_captions"] = "emoji_captions"
    styles: tuple[Style, ...] = Field(("noto", "twemoji"), min_length=1, description="drawing styles to train on")
    test_styles: tuple[Style, ...] = Field(STYLES, min_length=1, description="one test set per style")
    templates: Templates = Field(("an emoji of {}",), description="prompt templates for the test sets, {} = class name")


@register(
    "data",
    "emoji_captions",
    summary="all emoji of some styles with captions",
    config=EmojiCaptionsConfig,
    gives="classes captions",
)
def emoji_captions(config: EmojiCaptionsConfig) -> Splits:
    """Load the captioned pictures of `styles`, and one test set per style of `test_styles`.

    Raises:
        DataError: the shipped files are missing.
    """
    sets = [_captioned(emoji_images(style)) for style in config.styles]
    train = replace(
        sets[0],
        name="+".join(config.styles),
        labels=tuple(label for images in sets for label in images.labels),
        keys=tuple(key for images in sets for key in images.keys),
        captions=tuple(captions for images in sets for captions in images.captions),
    )
    tests = {style: emoji_images(style) for style in config.test_styles}
    return Splits(train=train, val=train.subset([]), tests=tests, templates=config.templates)


def _captioned(images: ImageSet) -> ImageSet:
    parts = [caption_parts(key.partition("/")[2]) for key in images.keys]
    return replace(images, captions=tuple((name, sub, f"{name}, {sub}") for name, sub, _, _ in parts))
