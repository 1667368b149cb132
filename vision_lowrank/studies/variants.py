"""What a study compares: methods by what the command line calls them, budgets, protocols and data sets.

Nothing here needs torch, so what is wrong with these names is said at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from ..config import RunConfig
from ..errors import UserError, near_miss
from ..registry import registry

Budget = Literal["defaults", "rank", "parameters"]
Protocol = Literal["fewshot", "base_to_novel", "transfer"]
# What a method may have beside its adapter: sections of a config, in the order in which they are written.
OTHERS = ("initializer", "rule", "regularizer", "selection")
NONE = "none"
# Why a recipe is refused, and what serves it.
INCOMPARABLE = (
    "compare needs a few-shot recipe with an adapter; `vision-lowrank incremental` compares recipes of sessions, and "
    "`vision-lowrank train` runs any."
)


class Entry(NamedTuple):
    """One method of a comparison.

    Attributes:
        adapter: a registered adapter; None trains without one.
        initializer: a registered initialiser, or None.
        others: further parts as (section of the config, registered name), such as ``("rule", "glad")``.
    """

    adapter: str | None
    initializer: str | None = None
    others: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, config: RunConfig) -> Entry:
        """The method of a recipe."""
        chosen = {name: getattr(config, name).type for name in OTHERS if getattr(config, name) is not None}
        adapter = config.adapter.type if config.adapter else None
        return cls(adapter, chosen.pop("initializer", None), tuple(sorted(chosen.items())))

    @property
    def name(self) -> str:
        """``lora``, ``lora+pissa`` or ``lora+pissa+glad``."""
        parts = [self.adapter or NONE, self.initializer, *(name for _, name in self.others)]
        return "+".join(part for part in parts if part)


def entries(methods: str, initializers: str = NONE) -> list[Entry]:
    """From what the command line says to the methods of a sweep, each once, in order.

    Args:
        methods: ``all`` registered adapters of ours, or comma-separated methods: an adapter or ``none``, and after
            plus signs the names of an initialiser, a gradient rule and so on, at most one of each kind.
        initializers: comma-separated initialisers, ``none`` among them, or ``all`` (with none); each is combined with
            every method that names nothing beside its adapter.

    Raises:
        UserError: an unknown name, or two parts of one kind.
    """
    ours = [part.name for part in registry.list("adapter") if part.name != "peft"]
    starts = [NONE, *(part.name for part in registry.list("initializer"))]
    starts = starts if initializers == "all" else _split(initializers)
    found = []
    for method in ours if methods == "all" else _split(methods):
        adapter, *parts = method.split("+")
        if adapter != NONE:
            registry.get("adapter", adapter)
        found += [_entry(adapter, parts)] if parts else [_entry(adapter, [start]) for start in starts]
    return list(dict.fromkeys(found))


def _entry(adapter: str, names: Sequence[str]) -> Entry:
    """The method of an adapter and the names after it."""
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


def check_budget(budget: str) -> None:
    """Raise UserError for an unknown budget."""
    known = get_args(Budget)
    if budget not in known:
        raise UserError(f"unknown budget '{budget}'.{near_miss(budget, known)} Known: {', '.join(known)}.")


def check_protocol(protocol: str) -> None:
    """Raise UserError for an unknown protocol."""
    known = get_args(Protocol)
    if protocol not in known:
        raise UserError(f"unknown protocol '{protocol}'.{near_miss(protocol, known)} Known: {', '.join(known)}.")


def data_override(name: str, root: str | None) -> str:
    """The override of a recipe that puts it on a data set: a registered one, or one of ``data: {type: coop}``.

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
