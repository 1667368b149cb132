"""YAML as configs use it: mappings, lists, texts and numbers, read in bounded time and memory.

YAML has more than settings need, and each of it breaks something: dates, tags such as ``!!int x``, numbers of ten
thousand digits, nesting that ends Python's stack, and aliases that repeat, or contain, themselves. Here a date is
text, ``1e-3`` is a number, and everything else is an error of one line. Aliases are fine while they stay small.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

MOST_BYTES, MOST_NODES, MOST_DEPTH, MOST_BITS = 2**20, 20_000, 40, 64
_TEXT = "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """PyYAML's, without dates and base 60, with numbers such as ``1e-3``, refusing keys that are given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping."""
        found = super().construct_mapping(node, deep)
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in found:
            if keys.count(key) > 1:
                raise ValueError(f"the key '{key!s:.60}' is given twice")
        return found


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    dropped = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    kept = {
        first: [(tag, pattern) for tag, pattern in pairs if tag not in dropped]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    number = re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
    special = re.compile(r"[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$")
    whole = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]*|[1-9][0-9_]*)$")
    for first in "-+0123456789.":
        own = [("tag:yaml.org,2002:float", number), ("tag:yaml.org,2002:float", special)]
        kept[first] = [*own, *([] if first == "." else [("tag:yaml.org,2002:int", whole)]), *kept.get(first, [])]
    return kept


_Loader.yaml_implicit_resolvers = _resolvers()


def parse_yaml(text: str) -> Any:
    """Read a YAML text.

    Returns:
        Plain values: dictionaries, lists, texts, finite numbers, booleans and None.

    Raises:
        ValueError: it is no YAML, or has what configs have not: the reason, in one line.
    """
    try:
        _check_size(text)
        value = yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None
    _check_numbers(value)
    return value


def _check_size(text: str) -> None:
    """Go through a text, event by event, which neither builds nor repeats anything."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES:,} characters")
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []  # anchor and nodes before it, of what has begun
    nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias '*{event.anchor}' stands inside itself, or its anchor is missing")
            nodes += sizes[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            if event.tag not in (None, "!", _TEXT):
                raise ValueError(f"the tag '{event.tag[-40:]}' is none that configs use: write the value alone")
            nodes += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append((event.anchor, nodes - 1))
            elif event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = nodes - before
        if nodes > MOST_NODES:
            raise ValueError(f"it has more than {MOST_NODES:,} values, aliases counted as often as they stand")
        if len(open_) > MOST_DEPTH:
            raise ValueError(f"it is nested deeper than {MOST_DEPTH} levels")


def _check_numbers(value: Any) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            _check_numbers(key)
            _check_numbers(each)
    elif isinstance(value, list):
        for each in value:
            _check_numbers(each)
    elif isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError("it has a number of more digits than any setting takes")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it has a number that is not finite")
