"""Types of options as text, and back: how the index of parts holds them.

Text is what one would write in Python, ``tuple[float, float] | None``, with the marks of :mod:`.marks` by name. What
only a validator function says is not in it: the part's own type checks that.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from .marks import File, FileOrFolder, FileOrTag, Folder, OfKind, OnDisk

# Limits of a value, by their names in pydantic's ``Field``.
LIMITS = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern", "allow_inf_nan")
PLAIN = {each.__name__: each for each in (bool, int, float, str, list, tuple, dict)}
NAMED = {"Folder": Folder, "File": File, "FileOrFolder": FileOrFolder, "FileOrTag": FileOrTag}
NAMES = {get_args(annotation)[1]: name for name, annotation in NAMED.items()}
NAMESPACE = PLAIN | NAMED | {"Annotated": Annotated, "Any": Any, "Field": Field, "Literal": Literal, "OfKind": OfKind}


def limits_of(metadata: Iterable[Any]) -> dict[str, Any]:
    """Collect the limits that a type's metadata set, in the order of ``LIMITS``."""
    found: dict[str, Any] = {}
    for each in metadata:
        own = limits_of(each.metadata) if isinstance(each, FieldInfo) else {}
        found |= own or {name: value for name in LIMITS if (value := getattr(each, name, None)) is not None}
    return {name: found[name] for name in LIMITS if name in found}


def marked(annotation: Any, metadata: Iterable[Any]) -> Any:
    """Return `annotation` with those of its metadata that are marks."""
    for mark in metadata:
        if isinstance(mark, OnDisk | OfKind):
            annotation = Annotated[annotation, mark]
    return annotation


def text_of(annotation: Any, models: dict[str, type[BaseModel]]) -> str:
    """Write a type as text.

    Args:
        annotation: the type.
        models: gets the sections that the text names.

    Raises:
        TypeError: there is no text for such a type.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "None"
    if annotation is Any:
        return "Any"
    if origin is Annotated:
        return _annotated_text(arguments[0], arguments[1:], models)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin in (Union, types.UnionType):
        return " | ".join(text_of(each, models) for each in arguments)
    if origin in PLAIN.values():
        inner = ("..." if each is Ellipsis else text_of(each, models) for each in arguments)
        return f"{origin.__name__}[{', '.join(inner)}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        models[annotation.__name__] = annotation
        return annotation.__name__
    if annotation in PLAIN.values():
        return annotation.__name__
    raise TypeError(f"{annotation!r} has no text in config/annotations.py: add it there, or use a plainer type")


def type_of(text: str, models: Mapping[str, type[BaseModel]]) -> Any:
    """Read the type that :func:`text_of` wrote; `models` are the sections that the text may name."""
    # Our own file, and what Python itself does with annotations that are text.
    return eval(text, {"__builtins__": {}, **NAMESPACE, **models})


def _annotated_text(base: Any, metadata: Iterable[Any], models: dict[str, type[BaseModel]]) -> str:
    metadata = tuple(metadata)
    named = next((NAMES[mark] for mark in metadata if mark in NAMES), None) if base is str else None
    limits = ", ".join(f"{name}={value!r}" for name, value in limits_of(metadata).items())
    extra = [f"OfKind({mark.kind!r})" for mark in metadata if isinstance(mark, OfKind)]
    extra += [f"Field({limits})"] if limits else []
    text = named or text_of(base, models)
    return f"Annotated[{', '.join([text, *extra])}]" if extra else text
