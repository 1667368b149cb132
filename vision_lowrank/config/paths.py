"""Whether what a config names on the disk is there, before anything large is imported for it.

Options say by their type that they name a folder or a file (:mod:`.marks`). A value that is the option's default is
taken as it is, and so is a section with ``download: true``: what is missing will be fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from ..files import sibling
from .check import Findings
from .marks import WEIGHTS, OfKind, OnDisk
from .schema import BackboneConfig
from .sections import Key, first_model, typed_sections


def check_paths(
    settings: Mapping[str, Any], origins: Mapping[str, str] | None = None, source: str = "config", remedy: str = ""
) -> None:
    """Look for all folders and files that checked settings name.

    Args:
        settings: what :func:`.check.check_settings` returned, or ``to_tree`` of a config.
        origins: key path -> where it was set, for messages.
        source: named in messages for keys without an origin.
        remedy: ends every message; ``{key}`` in it is the setting's key.

    Raises:
        ConfigError: every one that is missing, one line each, with the name beside it that was probably meant.
    """
    found = Findings(origins or {}, source)
    sections = [
        (key, first_model(kind, str(content["type"])), content) for key, kind, content in typed_sections(settings)
    ]
    for key, model, content in [(("backbone",), BackboneConfig, settings["backbone"]), *sections]:
        for place, mark, text in named_paths(model, content):
            reason = _missing(mark, text)
            if reason:
                found.add((*key, *place), reason + remedy.format(key=".".join((*key, *place))))
    found.stop()


def named_paths(model: type[BaseModel], values: Mapping[str, Any]) -> Iterator[tuple[Key, OnDisk, str]]:
    """Yield (key path, mark, text) of every path in a section's values."""
    if values.get("download"):
        return
    for name, field in model.model_fields.items():
        if name in values and values[name] != field.default:
            for place, mark, text in _inside(field.annotation, field.metadata, values[name]):
                yield (name, *place), mark, text


def _inside(annotation: Any, marks: Any, value: Any) -> Iterator[tuple[Key, OnDisk, str]]:
    """Yield the paths in a value of some type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _inside(arguments[0], (*marks, *arguments[1:]), value)
        return
    for mark in marks:
        if isinstance(mark, OnDisk) and isinstance(value, str):
            yield (), mark, value
        if isinstance(mark, OfKind) and isinstance(value, dict):
            yield from named_paths(first_model(mark.kind, str(value["type"])), value)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and isinstance(value, dict):
        yield from named_paths(annotation, value)
    elif isinstance(value, list | tuple) and origin in (list, tuple):
        entries = [(str(index), entry, arguments[0]) for index, entry in enumerate(value)]
        yield from _below(entries)
    elif isinstance(value, dict) and origin is dict:
        yield from _below([(str(name), entry, arguments[1]) for name, entry in value.items()])
    elif origin in (Union, UnionType):  # whichever member the value can be
        for member in arguments:
            yield from _inside(member, (), value)


def _below(entries: list[tuple[str, Any, Any]]) -> Iterator[tuple[Key, OnDisk, str]]:
    for name, value, annotation in entries:
        for place, mark, text in _inside(annotation, (), value):
            yield (name, *place), mark, text


def _missing(mark: OnDisk, text: str) -> str | None:
    """Tell why a path cannot be used, or return None."""
    path = Path(text).expanduser()
    if mark.kind == "weights" and not (text.endswith(WEIGHTS) or "/" in text):
        return None  # a library's tag
    what = {"folder": "folder", "either": "file or folder"}.get(mark.kind, "file")
    if not path.exists():
        return f"{what} '{text}' does not exist.{sibling(path)}"
    if (mark.kind == "folder" and not path.is_dir()) or (what == "file" and not path.is_file()):
        return f"'{text}' is no {what}."
    return None
