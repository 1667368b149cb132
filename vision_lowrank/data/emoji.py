"""Emoji in four drawing styles: the same concepts by four design teams, so that a style is a domain.

The table ``data/emoji/emoji.csv`` has one row per emoji; tile i (64 x 64 RGBA, row-major, 40 columns) of each style's
atlas draws row i. Emoji that are near-duplicates of each other (woman, man and person golfing) share a *concept*.

The data set splits concepts, never pictures: all near-duplicates of a concept are on one side, in every style. So a
model trained on one style is tested on other concepts of the class, in the same style and in others. A class of n
pictures gives about 16 + 0.4 (n - 24) of them for training, 4 + 0.1 (n - 24) for validation and 4 + 0.5 (n - 24) for
testing; classes with few large concepts deviate (23 of the 35 pictures of "family" are one concept). The split does
not depend on the run's seed, and a concept of those sub-groups is on the same side where groups are the classes. With
the default of 24 pictures, 23 of 95 sub-groups remain, each with 16 training pictures or more (20 pictures: 29
sub-groups with at least 14; 14 pictures: 53 with at least 10).
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Annotated, Literal

from PIL import Image
from pydantic import AfterValidator, Field

from ..config.schema import Section
from ..errors import DataError, near_miss
from ..paths import shipped
from ..registry import register
from .base import ImageSet, Splits
from .images import to_rgb
from .options import Colour, Templates, class_name
from .samplers import split_by_group

STYLES = ("noto", "twemoji", "openmoji", "fluent")
TILE, COLUMNS = 64, 40
LEAST, SHARES, SPLIT_SEED = (16, 4, 4), (0.4, 0.1, 0.5), 0

Label = Literal["subgroup", "group", "name"]


@dataclass(frozen=True)
class Emoji:
    """One row of the table.

    Attributes:
        code: code points in hexadecimal, joined by hyphens, such as ``1f600``.
        name: the CLDR name, such as ``grinning face``.
        subgroup: readable sub-group, such as ``face smiling``.
        group: readable group, such as ``smileys emotion``.
        keywords: further words that are true of it.
        concept: shared by near-duplicates.
        tile: its place in every atlas.
    """

    code: str
    name: str
    subgroup: str
    group: str
    keywords: tuple[str, ...]
    concept: str
    tile: int


def check_style(style: str) -> str:
    """Return `style` if it is one of ``STYLES``.

    Raises:
        DataError: it is not.
    """
    if style not in STYLES:
        raise DataError(f"unknown emoji style '{style}'.{near_miss(style, STYLES)} Known: {', '.join(STYLES)}.")
    return style


Style = Annotated[str, AfterValidator(check_style)]


class EmojiConfig(Section):
    """Options of ``data: {type: emoji}``."""

    type: Literal["emoji"] = "emoji"
    train_style: Style = Field("fluent", description="drawing style of train and val")
    test_styles: tuple[Style, ...] = Field(("fluent", "openmoji"), min_length=1, description="one test set per style")
    retention_styles: tuple[Style, ...] = Field(("noto", "twemoji"), description="one retention set per style")
    label: Literal["subgroup", "group"] = Field("subgroup", description="what the classes are")
    min_images: int = Field(sum(LEAST), ge=3, description="leave out classes with fewer pictures per style")
    background: Colour = Field("white", description="colour behind the transparent tiles: a name or #rrggbb")
    templates: Templates = Field(("an emoji of {}",), description="prompt templates, {} = class name")


@register(
    "data", "emoji", summary="emoji of four drawing styles, split by concept", config=EmojiConfig, gives="classes"
)
def emoji(config: EmojiConfig) -> Splits:
    """Return the fixed concept-level split; test and retention sets hold the same test concepts, one set per style.

    Raises:
        DataError: no class has `min_images` pictures, or the shipped files are missing.
    """
    images = _large_classes(emoji_images(config.train_style, config.label, config.background), config.min_images)
    settled = {} if config.label == "subgroup" else _subgroup_sides()
    train, val, test = split_by_group(images, SHARES, SPLIT_SEED, _concepts(images), LEAST, settled)
    return Splits(
        train=train,
        val=val,
        tests={style: in_style(test, style) for style in config.test_styles},
        retention={style: in_style(test, style) for style in config.retention_styles},
        templates=config.templates,
    )


def emoji_images(style: str, label: Label = "subgroup", background: str = "white") -> ImageSet:
    """Return every emoji in one style; keys such as ``fluent/1f600``, captions name, sub-group, group and keywords.

    Args:
        style: one of ``STYLES``.
        label: what the classes are.
        background: colour behind the transparent tiles.

    Raises:
        DataError: the style is unknown, or the shipped files are missing.
    """
    check_style(style)
    rows = emoji_table()
    names = [getattr(row, label) for row in rows]
    classes = tuple(dict.fromkeys(names))
    numbers = {name: number for number, name in enumerate(classes)}
    return ImageSet(
        name=style,
        classes=classes,
        labels=tuple(numbers[name] for name in names),
        keys=tuple(f"{style}/{row.code}" for row in rows),
        load=partial(_load, background),
        captions=tuple(tuple(dict.fromkeys((row.name, row.subgroup, row.group, *row.keywords))) for row in rows),
    )


def in_style(images: ImageSet, style: str) -> ImageSet:
    """Return the same emoji drawn in another style."""
    return replace(images, name=check_style(style), keys=tuple(f"{style}/{_code(key)}" for key in images.keys))


def emoji_rgba(style: str, code: str) -> Image.Image:
    """Return one drawing, (64, 64) RGBA with its own transparency.

    Raises:
        DataError: the style or the code is unknown, or the shipped files are missing.
    """
    tile = _row(code).tile
    left, top = tile % COLUMNS * TILE, tile // COLUMNS * TILE
    return _atlas(check_style(style)).crop((left, top, left + TILE, top + TILE))


def caption_parts(code: str) -> tuple[str, str, str, tuple[str, ...]]:
    """Return name, sub-group, group and keywords of an emoji.

    Raises:
        DataError: the code is unknown.
    """
    row = _row(code)
    return row.name, row.subgroup, row.group, row.keywords


@lru_cache(maxsize=1)
def emoji_table() -> tuple[Emoji, ...]:
    """Read all rows of the table, in the order of the tiles.

    Raises:
        DataError: the shipped files are missing.
    """
    path = shipped("data") / "emoji" / "emoji.csv"
    if not path.is_file():
        raise _not_built(path.name)
    with open(path, newline="", encoding="utf-8") as file:
        return tuple(
            Emoji(
                code=line["code"],
                name=line["name"],
                subgroup=_words(line["subgroup"]),
                group=_words(line["group"]),
                keywords=tuple(word for word in line["keywords"].split(";") if word),
                concept=line["concept"],
                tile=tile,
            )
            for tile, line in enumerate(csv.DictReader(file))
        )


@lru_cache(maxsize=1)
def _subgroup_sides() -> dict[str, int]:
    """Map concept -> part of the split by sub-groups, which a split by groups keeps: what trains for one label is never
    tested for the other.
    """
    images = _large_classes(emoji_images(STYLES[0]), sum(LEAST))
    parts = split_by_group(images, SHARES, SPLIT_SEED, _concepts(images), LEAST)
    return {concept: number for number, part in enumerate(parts) for concept in _concepts(part)}


def _concepts(images: ImageSet) -> list[str]:
    return [_by_code()[_code(key)].concept for key in images.keys]


def _large_classes(images: ImageSet, min_images: int) -> ImageSet:
    """Keep the classes with `min_images` pictures or more, renumbered in the same order."""
    counts = Counter(images.labels)
    kept = [label for label in range(len(images.classes)) if counts[label] >= min_images]
    if not kept:
        raise DataError(
            f"no emoji class has {min_images} pictures (most {max(counts.values())}): lower data.min_images."
        )
    return images.of_classes(kept)


@lru_cache(maxsize=1)
def _by_code() -> dict[str, Emoji]:
    return {row.code: row for row in emoji_table()}


def _row(code: str) -> Emoji:
    if code not in _by_code():
        raise DataError(f"unknown emoji code '{code}': see the column `code` of data/emoji/emoji.csv, such as 1f600.")
    return _by_code()[code]


@lru_cache(maxsize=len(STYLES))
def _atlas(style: str) -> Image.Image:
    path = shipped("data") / "emoji" / f"{style}.webp"
    if not path.is_file():
        raise _not_built(path.name)
    with Image.open(path) as picture:
        return picture.convert("RGBA")


def _load(background: str, key: str) -> Image.Image:
    style, _, code = key.partition("/")
    return to_rgb(emoji_rgba(style, code), background)


def _code(key: str) -> str:
    return key.partition("/")[2]


def _words(text: str) -> str:
    return class_name(text.replace("-", " "))


def _not_built(name: str) -> DataError:
    return DataError(f"the emoji file '{name}' is missing: run `python data/emoji/build.py` in a checkout.")
