"""The pages' templates: everything that they are given is escaped, but markup; numbers have one way to be written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from jinja2 import ChainableUndefined, ChoiceLoader, Environment, FileSystemLoader, PackageLoader, Template


def template(name: str, *folders: Path) -> Template:
    """Load a page's template.

    Args:
        name: of a file in one of `folders` or, where none has it, in this package's folder ``viz``.
        folders: searched first.
    """
    environment = Environment(
        loader=ChoiceLoader([FileSystemLoader(folders), PackageLoader("vision_lowrank", "viz")]),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "short": _short, "thousands": _thousands, "duration": _duration}
    environment.filters |= {"shell": shlex.quote, "literal": json.dumps}
    return environment.get_template(name)


def _figure(value: float | None, fraction: bool = False, signed: bool = False) -> str:
    """Format a score: fractions as percent with one decimal, other numbers with three; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{abs(100 * value):.1f}" if fraction else f"{abs(value):.3f}"
    if not text.strip("0."):
        return text
    return ("−" if value < 0 else "+" if signed else "") + text


def _short(value: float | None) -> str:
    """Format three digits, however small the number."""
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def _thousands(value: float) -> str:
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
