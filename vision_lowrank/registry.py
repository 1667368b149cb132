"""The one registry: every adapter, backbone, data set and task is known here by kind and name.

A part registers itself in the module that defines it::

    @register("adapter", "block_lora", summary="LoRA whose blocks share one down-projection", paper="arXiv 2501.16720")
    class BlockLoraConfig(...): ...

``parts.json`` beside this file, the *index*, says of every part of this package what it is, which options it has and
which module holds it, so listing parts and checking their names imports none; a part's module is imported when its
``target`` is asked for. ``make parts`` writes the index anew, and a test compares it with the parts. A part that it
does not have yet is found all the same, by a search through the sources.

A package outside this one registers its parts in the same way and names its module under the entry-point group
``vision_lowrank``; it is imported before parts are listed, or a name is called unknown::

    [project.entry-points.vision_lowrank]
    my_method = "my_package.my_method"
"""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .errors import UserError, near_miss

T = TypeVar("T")

ENTRY_POINT_GROUP = "vision_lowrank"
PACKAGE = __name__.rpartition(".")[0]
FOLDER = Path(__file__).parent
INDEX = FOLDER / "parts.json"

# Where the parts of each kind live, below this package.
PACKAGES = {
    "adapter": "adapters", "backbone": "backbones", "data": "data", "hook": "engine", "initializer": "initializers",
    "model": "tasks", "regularizer": "regularizers", "report": "viz.sections", "rule": "optim",
    "selection": "selection", "task": "tasks",
}  # fmt: skip


class Definition(NamedTuple):
    """What a part is in Python: the registered class or function, and the type that validates its options in a config
    file; None where the class itself is that type.
    """

    target: Any
    config: Any


@dataclass(frozen=True)
class Part:
    """One registered part.

    Attributes:
        kind: what it is: a key of ``PACKAGES``.
        name: the name used in configs, snake case.
        summary: what it does, in one line.
        paper: the source, such as ``arXiv 2501.16720``; empty where there is none.
        load: gives its definition, after importing its module if need be.
        facts: what the index says of it, empty for a part that the index does not have: `module`, `options`,
            `sections` (see :mod:`vision_lowrank.config.index`).
        gives: what a data set gives, in words that tasks ask for, such as ``classes``.
    """

    kind: str
    name: str
    summary: str
    paper: str
    load: Callable[[], Definition] = field(repr=False, compare=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    gives: str = ""

    @property
    def target(self) -> Any:
        """The registered class or function."""
        return self.load().target

    @property
    def config(self) -> Any:
        """The type that validates its options in a config file; None where `target` itself is that type."""
        return self.load().config


class Registry:
    """Parts by kind and name, filled by :meth:`register` and searched by :meth:`get`.

    Args:
        index: file with what is known of this package's parts without importing them; None for parts registered in
            this process alone.
    """

    def __init__(self, index: Path | None = None) -> None:
        self._index = index
        self._registered: dict[str, dict[str, Part]] = {kind: {} for kind in PACKAGES}
        self._loaded: set[str] = set()

    def register(
        self, kind: str, name: str, *, summary: str, paper: str = "", config: Any = None, gives: str = ""
    ) -> Callable[[T], T]:
        """Return a decorator that registers its class or function, in the module that defines it.

        Raises:
            UserError: `kind` is unknown, or `name` is taken by another object.
        """
        self._check(kind)

        def add(target: T) -> T:
            definition = Definition(target, config)
            taken = self._taken(kind, name, target)
            if taken is not None:
                raise UserError(f"{kind} '{name}' is registered twice, by {taken} and {target!r}: rename one.")
            self._registered[kind][name] = Part(kind, name, summary, paper, lambda: definition, gives=gives)
            return target

        return add

    def get(self, kind: str, name: str) -> Part:
        """Return the part registered as `name`.

        Raises:
            UserError: there is none; the message lists the names and the nearest one.
        """
        self._check(kind)
        if name not in self._known(kind):
            self._load_outside()
        if name not in self._known(kind):
            self._load_unindexed(kind, name)
        known = self._known(kind)
        if name not in known:
            names = f"Known: {', '.join(sorted(known))}." if known else "None is registered."
            raise UserError(f"unknown {kind} '{name}'.{near_miss(name, known)} {names}")
        return known[name]

    def list(self, kind: str | None = None) -> list[Part]:
        """List all parts, or those of one kind, sorted by kind and name."""
        kinds = [kind] if kind else sorted(PACKAGES)
        for each in kinds:
            self._check(each)
            if self._index and not self._indexed:
                self.load(each)
        self._load_outside()
        return [part for each in kinds for _, part in sorted(self._known(each).items())]

    def load(self, kind: str) -> None:
        """Import every module that may hold parts of a kind."""
        self._check(kind)
        self._load_outside()
        if kind not in self._loaded:
            self._loaded.add(kind)
            package = importlib.import_module(f"{PACKAGE}.{PACKAGES[kind]}")
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                importlib.import_module(module.name)

    def registered(self, kind: str) -> list[Part]:
        """List the parts of a kind whose modules are imported already, by name, as the modules say them."""
        self._check(kind)
        return [part for _, part in sorted(self._registered[kind].items())]

    def _check(self, kind: str) -> None:
        if kind not in PACKAGES:
            raise UserError(f"unknown kind '{kind}'.{near_miss(kind, PACKAGES)} Known: {', '.join(PACKAGES)}.")

    def _known(self, kind: str) -> dict[str, Part]:
        return self._registered[kind] | self._indexed.get(kind, {})

    @cached_property
    def _indexed(self) -> dict[str, dict[str, Part]]:
        """What the index says; nothing where it is missing or in the middle of a merge, so that it can be rewritten."""
        try:
            kinds = json.loads(self._index.read_text(encoding="utf-8")) if self._index else {}
        except (OSError, json.JSONDecodeError):
            kinds = {}
        return {
            kind: {
                name: Part(
                    kind,
                    name,
                    facts["summary"],
                    facts["paper"],
                    partial(self._import, kind, name),
                    facts,
                    facts.get("gives", ""),
                )
                for name, facts in parts.items()
            }
            for kind, parts in kinds.items()
        }

    def _import(self, kind: str, name: str) -> Definition:
        """Import a part of the index and return its definition."""
        if name not in self._registered[kind]:
            module = self._indexed[kind][name].facts["module"]
            importlib.import_module(f"{PACKAGE}.{module}")
            if name not in self._registered[kind]:
                raise UserError(f"{kind} '{name}' is not in {module} any more: run `make parts`.")
        return self._registered[kind][name].load()

    def _taken(self, kind: str, name: str, target: Any) -> str | None:
        """Return what has the name already, unless it is the same definition (a module imported anew: a new object)."""
        if name in self._registered[kind]:
            other = self._registered[kind][name].target
            same = (other.__module__, other.__qualname__) == (target.__module__, target.__qualname__)
            return None if same else repr(other)
        if target.__module__.startswith(f"{PACKAGE}.") or name not in self._indexed.get(kind, {}):
            return None  # our own modules are truer than the index
        return f"{PACKAGE}.{self._indexed[kind][name].facts['module']}"

    def _load_outside(self) -> None:
        """Import the packages that name an entry point.

        Raises:
            UserError: one cannot be imported.
        """
        if ENTRY_POINT_GROUP in self._loaded:
            return
        self._loaded.add(ENTRY_POINT_GROUP)
        for point in entry_points(group=ENTRY_POINT_GROUP):
            try:
                point.load()
            except ImportError as error:
                raise UserError(
                    f"entry point '{point.name} = {point.value}' cannot be imported ({error}): mend that package, or "
                    "uninstall it."
                ) from error

    def _load_unindexed(self, kind: str, name: str) -> None:
        """Import what registers `name` and is not in the index yet."""
        indexed = {part.facts["module"] for part in self._indexed.get(kind, {}).values()}
        for module in registering(kind, name, indexed) if self._index else ():
            importlib.import_module(f"{PACKAGE}.{module}")


def registering(kind: str, name: str, indexed: Collection[str]) -> Iterator[str]:
    """Yield the modules of this package, dotted below it, whose source registers `name`; or registers a name that is no
    literal, unless the module is in `indexed`.
    """
    for path in sorted((FOLDER / PACKAGES[kind].replace(".", "/")).rglob("*.py")):
        place = path.parent if path.stem == "__init__" else path.with_suffix("")
        module, names = ".".join(place.relative_to(FOLDER).parts), _names_registered(path, kind)
        if name in names or (None in names and module not in indexed):
            yield module


def _names_registered(path: Path, kind: str) -> set[str | None]:
    """Return the names that a source file registers under a kind, None for one that is no literal."""
    text = path.read_text(encoding="utf-8")
    if "register" not in text or kind not in text:
        return set()
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and len(node.args) > 1]
    return {
        call.args[1].value if isinstance(call.args[1], ast.Constant) else None
        for call in calls
        if getattr(call.func, "id", getattr(call.func, "attr", "")) == "register"
        and isinstance(call.args[0], ast.Constant)
        and call.args[0].value == kind
    }


registry = Registry(INDEX)
register = registry.register
