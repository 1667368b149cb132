"""References between settings: ``${engine.batch_size}`` stands for the value there, and within a text for its text.

A reference is the full key of a setting; entries of lists have numbers, ``${seeds.0}``. What stands there may refer
further. References that multiply would fill any memory, so what all of them bring in is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import near_miss

MOST_BROUGHT = 2**20  # characters and values, by all references together
_REFERENCE = re.compile(r"\$\{([^${}]*)\}")


def resolve_references(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries and lists with values in the place of references.

    Raises:
        ValueError: a reference is malformed, leads nowhere or into itself, or all bring in too much: one line.
    """
    return _Resolver(tree).of(tree)


class _Resolver:
    """References of one tree, each resolved once.

    Attributes:
        tree: all settings, as written.
        known: reference -> its value and size.
        brought: size of what references brought so far.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.tree, self.known, self.brought = tree, dict[str, tuple[Any, int] | None](), 0

    def of(self, value: Any) -> Any:
        """Return a value with its references resolved."""
        if isinstance(value, Mapping):
            return {key: self.of(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(each) for each in value]
        return self._text(value) if isinstance(value, str) and "${" in value else value

    def _text(self, text: str) -> Any:
        if "${" in _REFERENCE.sub("", text):
            raise ValueError(f"'{text:.60}': a reference is written ${{key}}, with the full key of another setting")
        whole = _REFERENCE.fullmatch(text)
        if whole:
            return self._value(whole[1])
        return _REFERENCE.sub(lambda found: self._inside(found[1], text), text)

    def _inside(self, key: str, text: str) -> str:
        value = self._value(key)
        if isinstance(value, dict | list):
            raise ValueError(f"'{text:.60}': {key:.60} is no single value, which alone can stand within a text")
        return str(value)

    def _value(self, key: str) -> Any:
        """Return what a reference stands for."""
        if key not in self.known:
            self.known[key] = None  # until it is known
            value = self.of(self._find(key))
            self.known[key] = value, _size(value)
        found = self.known[key]
        if found is None:
            raise ValueError(f"${{{key:.60}}} refers to itself")
        self.brought += found[1]
        if self.brought > MOST_BROUGHT:
            raise ValueError(f"references bring in more than {MOST_BROUGHT:,} characters and values")
        return found[0]

    def _find(self, key: str) -> Any:
        value: Any = self.tree
        for part in key.strip().split("."):
            if isinstance(value, list | tuple) and part.isdecimal() and len(part) < 10 and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, Mapping) and part in value:
                value = value[part]
            else:
                names = [str(each) for each in value] if isinstance(value, Mapping) else []
                raise ValueError(f"${{{key:.60}}} refers to no setting.{near_miss(part, names)}")
        return value


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(len(str(key)) + _size(each) for key, each in value.items())
    if isinstance(value, list):
        return 1 + sum(map(_size, value))
    return len(value) if isinstance(value, str) else 1
