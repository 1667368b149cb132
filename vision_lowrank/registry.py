"""The one registry: every adapter, backbone, data set and task is known here by kind and name.

A part registers itself where it is defined::

    @register("adapter", "block_lora", summary="LoRA whose blocks share one down-projection", paper="arXiv 2501.16720")
    class BlockLoraConfig(...): ...

A package outside this one does the same and names its module under the entry-point group ``vision_lowrank``::

    [project.entry-points.vision_lowrank]
    my_method = "my_package.my_method"

Nothing is imported until a part is looked up or listed, so importing this module costs nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from .errors import UserError, near_miss

T = TypeVar("T")

ENTRY_POINT_GROUP = "vision_lowrank"

# Where the parts of each kind live: looking one up imports the modules of its package.
PACKAGES = {
    "adapter": "adapters", "backbone": "backbones", "data": "data", "hook": "engine", "initializer": "initializers",
    "model": "tasks", "regularizer": "regularizers", "report": "viz.sections", "rule": "optim",
    "selection": "selection", "task": "tasks",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One registered part.

    Attributes:
        kind: what it is: a key of ``PACKAGES``.
        name: the name used in configs, snake case.
        target: the registered class or function.
        summary: what it does, in one line.
        paper: the source, such as ``arXiv 2501.16720``; empty where there is none.
        config: the type that validates its options in a config file; None where `target` itself is that type.
    """

    kind: str
    name: str
    target: Any
    summary: str
    paper: str = ""
    config: Any = None


class Registry:
    """Parts by kind and name, filled by :meth:`register` and searched by :meth:`get`."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[str, Part]] = {kind: {} for kind in PACKAGES}
        self._discovered: set[str] = set()

    def register(self, kind: str, name: str, *, summary: str, paper: str = "", config: Any = None) -> Callable[[T], T]:
        """Decorator that registers its class or function.

        Raises:
            UserError: `kind` is unknown, or `name` is taken by another object.
        """
        parts = self._of(kind)

        def add(target: T) -> T:
            taken = parts.get(name)
            if taken is not None and not _same(taken.target, target):
                raise UserError(f"{kind} '{name}' is registered twice, by {taken.target!r} and {target!r}: rename one.")
            parts[name] = Part(kind, name, target, summary, paper, config)
            return target

        return add

    def get(self, kind: str, name: str) -> Part:
        """The part registered as `name`.

        Raises:
            UserError: there is none; the message lists the names and the nearest one.
        """
        parts = self._of(kind)
        if name not in parts:
            self._discover(kind)
        if name not in parts:
            raise UserError(f"unknown {kind} '{name}'.{near_miss(name, parts)} Known: {', '.join(sorted(parts))}.")
        return parts[name]

    def list(self, kind: str | None = None) -> list[Part]:
        """All parts, or those of one kind, sorted by kind and name."""
        found = []
        for each in [kind] if kind else sorted(self._parts):
            self._discover(each)
            found += sorted(self._of(each).values(), key=lambda part: part.name)
        return found

    def _of(self, kind: str) -> dict[str, Part]:
        if kind not in self._parts:
            raise UserError(f"unknown kind '{kind}'.{near_miss(kind, self._parts)} Known: {', '.join(self._parts)}.")
        return self._parts[kind]

    def _discover(self, kind: str) -> None:
        self._of(kind)
        if kind not in self._discovered:
            self._discovered.add(kind)
            root = __name__.rpartition(".")[0]
            package = importlib.import_module(f"{root}.{PACKAGES[kind]}")
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                importlib.import_module(module.name)
        if ENTRY_POINT_GROUP not in self._discovered:
            self._discovered.add(ENTRY_POINT_GROUP)
            for point in entry_points(group=ENTRY_POINT_GROUP):
                point.load()


def _same(one: Any, other: Any) -> bool:
    """Whether two objects are the same definition (a module imported anew gives a new object of the same name)."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


registry = Registry()
register = registry.register
