"""Types of options that several data sets share."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated

from PIL import ImageColor
from pydantic import AfterValidator, Field


def check_templates(templates: Collection[str]) -> Collection[str]:
    """Return prompt templates that ``template.format(class_name)`` can fill.

    Raises:
        ValueError: one has not exactly one ``{}``, or another brace beside it.
    """
    for template in templates:
        if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
            raise ValueError(f"template '{template}' needs exactly one {{}} for the class name, and no other brace")
    return templates


def _colour(text: str) -> str:
    try:
        ImageColor.getrgb(text)
    except ValueError:
        raise ValueError("no colour has this name: give one such as white, or #rrggbb") from None
    return text


def _sum_to_one(fractions: tuple[float, float, float]) -> tuple[float, float, float]:
    if min(fractions) < 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ValueError("the fractions of train, val and test must be 0 or more and sum to 1")
    return fractions


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the range {pair[0]:g} to {pair[1]:g} is empty: give the smaller end first")
    return pair


_Share = Annotated[float, Field(gt=0, le=1)]

# Smallest and largest share of a picture's area.
AreaRange = Annotated[tuple[_Share, _Share], AfterValidator(_rising)]

# Prompt templates, each with one {} for the class name.
Templates = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(check_templates)]

# A colour that PIL knows.
Colour = Annotated[str, AfterValidator(_colour)]

# Shares of train, val and test.
Fractions = Annotated[tuple[float, float, float], AfterValidator(_sum_to_one)]


def class_name(text: str) -> str:
    """Return the readable form of a folder name or label: underscores become spaces, case stays (CoOp's rule)."""
    return " ".join(text.replace("_", " ").split())
