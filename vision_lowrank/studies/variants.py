"""What a study compares: a variant is a name and a config. And methods by what the command line calls them, budgets,
protocols and data sets.

Variants are made of one recipe and several methods (:mod:`.methods`), of several recipes (:mod:`.recipes`) or of one
recipe and settings that vary (:func:`assignments`), or are listed one by one. Nothing here needs torch, so what is
wrong with these names is said at once.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from ..config import RunConfig, to_tree
from ..config.schema import REFERENCES
from ..config.yaml_text import parse_yaml
from ..errors import UserError, near_miss
from ..registry import registry

Budget = Literal["defaults", "rank", "parameters"]
Tested = Literal["all", "base_to_novel", "transfer"]
# What a method may have beside its adapter: sections of a config, in the order in which they are written.
OTHERS = ("initializer", "rule", "regularizer", "selection")
NONE = "none"


@dataclass(frozen=True)
class Variant:
    """One row of a study's table.

    Attributes:
        name: in the table.
        config: what runs, with all its seeds; None where there is no such config.
        reason: why there is none.
        rates: learning rates to choose from; empty for the config's own.
        follows: takes the learning rate that was chosen for this other variant of the same call; `rates` is empty then.
        facts: what the row says of it beside the results.
    """

    name: str
    config: RunConfig | None
    reason: str = ""
    rates: Sequence[float] = ()
    follows: Variant | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, make: Callable[[], RunConfig], **options: Any) -> Variant:
        """Make the variant of a config that may not be possible: then it says why."""
        try:
            return cls(name, make(), **options)
        except UserError as error:
            return cls(name, None, one_line(error), **options)

    @property
    def folder(self) -> str:
        """What its folder is called: the name, but for what names of folders should not have."""
        return re.sub(r"[^\w.+=-]+", "-", self.name)


def one_line(error: UserError) -> str:
    """Return all that an error says."""
    return "; ".join(str(error).splitlines())


def check_names(variants: Sequence[Variant]) -> None:
    """Raise UserError where two variants would share a folder, or there is none."""
    folders = [variant.folder for variant in variants]
    twice = next((variant.name for variant in variants if folders.count(variant.folder) > 1), None)
    if not variants or twice:
        raise UserError(f"study: {f'two variants are called {twice!r}: rename one' if twice else 'nothing to run'}.")


def differing(configs: Mapping[str, RunConfig]) -> dict[str, dict[str, Any]]:
    """Find the dotted keys in which configs differ, but for names of folders, with each one's value.

    The value is None where it has none.
    """
    found_in = {name: dict(leaves(to_tree(config) | {"name": "", "out": ""})) for name, config in configs.items()}
    found = {}
    for key in dict.fromkeys(key for each in found_in.values() for key in each):
        values = {name: each.get(key) for name, each in found_in.items()}
        first = next(iter(values.values()))
        if any(value != first for value in values.values()):
            found[key] = values
    return found


def assignments(vary: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return (name, overrides) for every combination of settings that vary.

    Args:
        vary: such as ``adapter.r=2,4`` or ``adapter.modules=[q],[q,v]``: a key and values with commas between.

    Raises:
        UserError: not of that form.
    """
    axes = []
    for text in vary:
        key, equals, values = text.partition("=")
        try:
            found = parse_yaml(f"[{values}]")
        except ValueError:
            found = []
        if not equals or not found:
            raise UserError(f"--vary {text}: give a key and values with commas between, such as adapter.r=2,4,8.")
        axes.append([(f"{key}={_shown(value)}", f"{key}={json.dumps(value)}") for value in found])
    combinations = itertools.product(*axes)
    return [(", ".join(name for name, _ in each), [override for _, override in each]) for each in combinations]


class Entry(NamedTuple):
    """One method: what is attached and how it trains.

    Attributes:
        adapter: a registered adapter; None trains without one.
        initializer: a registered initialiser, or None.
        others: further parts as (section of the config, registered name), such as ``("rule", "glad")``.
        reference: one of :data:`~vision_lowrank.config.schema.REFERENCES`, which has no parts; empty for a method.
    """

    adapter: str | None
    initializer: str | None = None
    others: tuple[tuple[str, str], ...] = ()
    reference: str = ""

    @property
    def name(self) -> str:
        """``lora``, ``lora+pissa``, ``lora+pissa+glad`` or ``linear_probe``."""
        if self.reference:
            return self.reference
        parts = [self.adapter or NONE, self.initializer, *(name for _, name in self.others)]
        return "+".join(part for part in parts if part)


def entries(methods: str, initializers: str = NONE) -> list[Entry]:
    """Read the methods, each once, in order, from what the command line says.

    Args:
        methods: ``all`` registered adapters of ours, or comma-separated methods: an adapter or ``none``, and after
            plus signs the names of an initialiser, a gradient rule and so on, at most one of each kind; or one of
            :data:`~vision_lowrank.config.schema.REFERENCES`, alone.
        initializers: comma-separated initialisers, ``none`` among them, or ``all`` (with none); each is combined with
            every adapter that names nothing beside it.

    Raises:
        UserError: an unknown name, or two parts of one kind.
    """
    ours = [part.name for part in registry.list("adapter") if part.name != "peft"]
    starts = [NONE, *(part.name for part in registry.list("initializer"))]
    starts = starts if initializers == "all" else _split(initializers)
    found = []
    for method in ours if methods == "all" else _split(methods):
        adapter, *parts = method.split("+")
        if adapter in REFERENCES and not parts:
            found.append(Entry(None, reference=adapter))
            continue
        if adapter != NONE:
            _check_adapter(adapter)
        found += [_entry(adapter, parts)] if parts else [_entry(adapter, [start]) for start in starts]
    return list(dict.fromkeys(found))


def _check_adapter(name: str) -> None:
    """Raise UserError where `name` cannot have parts after it."""
    if name in REFERENCES:
        raise UserError(f"{name}: stands for itself: leave out what is after it, or write none+… for the base itself.")
    try:
        registry.get("adapter", name)
    except UserError:
        known = [*(part.name for part in registry.list("adapter")), *REFERENCES]
        raise UserError(f"unknown adapter '{name}'.{near_miss(name, known)} Known: {', '.join(known)}.") from None


def check_budget(budget: str) -> None:
    """Raise UserError for an unknown budget."""
    known = get_args(Budget)
    if budget not in known:
        raise UserError(f"unknown budget '{budget}'.{near_miss(budget, known)} Known: {', '.join(known)}.")


def check_protocol(protocol: str) -> None:
    """Raise UserError for an unknown protocol."""
    known = get_args(Tested)
    if protocol not in known:
        raise UserError(f"unknown protocol '{protocol}'.{near_miss(protocol, known)} Known: {', '.join(known)}.")


def data_override(name: str, root: str | None) -> str:
    """Return the override of a recipe that puts it on a data set: a registered one, or one of ``data: {type: coop}``.

    Args:
        name: of the data set.
        root: folder that holds the data sets of ``coop``.

    Raises:
        UserError: the data set is one of ``coop``, and there is no `root`.
    """
    if name in {part.name for part in registry.list("data")}:
        return f"data={json.dumps({'type': name})}"
    if root is None:
        raise UserError(f"data set '{name}': give --data-root, the folder that holds the data sets of CoOp.")
    return f"data={json.dumps({'type': 'coop', 'name': name, 'root': root})}"


def _entry(adapter: str, names: Sequence[str]) -> Entry:
    """Return the method of an adapter and the names after it."""
    known = {part.name: section for section in OTHERS for part in registry.list(section)}
    chosen: dict[str, str] = {}
    for name in names:
        if name == NONE:
            continue
        if name not in known:
            raise UserError(f"unknown part '{name}'.{near_miss(name, known)} Known: {', '.join(sorted(known))}.")
        if known[name] in chosen:
            raise UserError(f"{adapter}+{'+'.join(names)}: two of kind {known[name]}; name one of them.")
        chosen[known[name]] = name
    start = chosen.pop("initializer", None)
    return Entry(None if adapter == NONE else adapter, start, tuple(sorted(chosen.items())))


def _split(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("compare: name at least one method, such as --methods lora,block_lora or --methods all.")
    return names


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all that is not a section."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
