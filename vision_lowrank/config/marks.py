"""What an option means beyond its type: that it names something on the disk, or a registered part.

The marks are part of a type, ``root: Folder`` or ``transfer: tuple[Annotated[Any, OfKind("data")], ...]``, so they are
found wherever the type is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from ..registry import registry

# Endings of weight files: text without one and without a slash is a library's tag.
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
# The longest side of a model's input in pixels that is believed.
MAX_SIDE = 4096
# No number of a setting is larger, whatever it means: beyond are mistakes, or memory that nobody has.
LARGEST = 10**12
# What NumPy takes for a seed.
MAX_SEED = 2**32 - 1


def check_range(value: Any) -> Any:
    """Return a setting's plain value, or a list of them; mappings are sections, whose own settings are checked.

    Raises:
        ValueError: a number that no setting can mean.
    """
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, int | float) and not abs(each) <= LARGEST:  # NaN too
            raise ValueError(f"no setting goes beyond {LARGEST:.0e}")
    return value


def unsaid_weights(name: str, weights: str | None) -> str:
    """Return why a backbone's `weights` are not said; empty where they are.

    A model that ships with the package, whose name has no colon, has weights of its own.
    """
    if (weights is None and ":" not in name) or (weights and weights.strip()):
        return ""
    return (
        f"backbone '{name}' needs its weights to be said: `pretrained`, the library's default; a tag of the library, "
        f"such as `openai`; a file ({', '.join(WEIGHTS)}); or `random`, for a model that was never trained."
    )


@dataclass(frozen=True)
class OnDisk:
    """Marks text that names what must exist before anything can run; :func:`.paths.check_paths` looks.

    Attributes:
        kind: ``folder``, ``file``, ``either``, or ``weights``: a file where it looks like one, otherwise a tag.
    """

    kind: Literal["folder", "file", "either", "weights"]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let ``~`` be the user's own folder."""
        return core_schema.no_info_after_validator_function(os.path.expanduser, handler(source))


Folder = Annotated[str, OnDisk("folder")]
File = Annotated[str, OnDisk("file")]
FileOrFolder = Annotated[str, OnDisk("either")]
FileOrTag = Annotated[str, OnDisk("weights")]


@dataclass(frozen=True)
class OfKind:
    """Marks a section inside a section, ``{type: NAME, …}``, that the part registered as NAME validates.

    Attributes:
        kind: of the part, any but ``adapter``.
    """

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the section before anything else sees it."""
        return core_schema.no_info_before_validator_function(self.check, handler(source))

    def check(self, value: Any) -> Any:
        """Check a mapping with a registered ``type`` and return its section.

        Raises:
            ValueError: it is no mapping, or has an unknown key or a bad value.
            UserError: the type is not registered.
        """
        if isinstance(value, BaseModel):
            return value
        if not isinstance(value, dict) or "type" not in value:
            raise ValueError("needs a `type`, as in {type: digits}")
        part = registry.get(self.kind, str(value["type"]))
        try:
            return (part.config or part.target).model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
