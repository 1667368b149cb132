"""Variants of one recipe that differ in what is attached and how it trains, at a fair size.

The recipe says where adapters sit and how long they train; of another adapter than the recipe's own, all other options
are that method's defaults, but for overrides that it knows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..config import RunConfig, load_config
from ..config.adapter import PLACES, AdapterSection
from ..errors import UserError
from ..registry import registry
from .columns import facts_of
from .run import build_task
from .study import Study
from .variants import OTHERS, Budget, Entry, Variant, check_budget

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class Methods:
    """What to compare.

    Attributes:
        recipe: of a task that attaches adapters.
        entries: methods.
        budget: ``rank`` gives all the recipe's rank, ``parameters`` gives each the rank that comes nearest to the
            recipe's number of trained parameters, ``defaults`` leaves every method its own size; None is ``rank``, and
            ``defaults`` where the recipe has no rank.
        rates: learning rates to choose from; empty for the recipe's own.
    """

    recipe: Path
    entries: Sequence[Entry]
    budget: Budget | None = None
    rates: Sequence[float] = ()

    def study(self, folder: Path, overrides: Sequence[str] = ()) -> Study:
        """Make the study, with settings for all methods, such as ``engine.steps=100``.

        Raises:
            UserError: an unknown budget, or a recipe whose adapter cannot be exchanged.
        """
        base = self._base(overrides)
        budget = self.budget or ("rank" if _rank(base) else "defaults")
        target = trained_parameters(base) if budget == "parameters" else None
        variants = []
        for entry in self.entries:
            config = partial(self._sized, base, overrides, entry, budget, target)
            variant = Variant.of(entry.name, config, rates=self.rates)
            variants.append(variant if variant.config is None else _told(variant, variant.config))
        sizes = {
            "rank": f"every method at the recipe's rank {_rank(base)}",
            "parameters": f"every method at the rank nearest to {target} trained parameters",
            "defaults": "every method at its own default size",
        }[budget]
        facts = {
            "recipe": str(self.recipe),
            "overrides": list(overrides),
            "budget": budget,
            "sizes": sizes,
            "rates": list(self.rates),
            "target": target,
        }
        return Study(folder, f"{self.recipe.stem}, {sizes}", variants, base, facts, settings=False)

    def _base(self, overrides: Sequence[str]) -> RunConfig:
        """Load the recipe itself."""
        if self.budget is not None:
            check_budget(self.budget)
        config = load_config(self.recipe, overrides)
        if not facts_of(config.task.type).adapts:
            raise UserError(
                f"{self.recipe}: task {config.task.type} attaches no adapter, so --methods has nothing to exchange: "
                "give recipes side by side, or --vary KEY=VALUE,VALUE."
            )
        if config.adapter is None and config.rule is None:
            raise UserError(f"{self.recipe}: --methods needs a recipe with an adapter: it says where adapters sit.")
        if self.budget not in (None, "defaults") and not _rank(config):
            kind = config.adapter.type if config.adapter else "a recipe without adapter"
            raise UserError(
                f"budget '{self.budget}' goes by the recipe's rank, and {kind} has none: use --budget defaults."
            )
        return config

    def _sized(
        self, base: RunConfig, overrides: Sequence[str], entry: Entry, budget: Budget, target: int | None
    ) -> RunConfig:
        """Load the recipe with another method, of the size that the budget gives it."""
        config = self.config(base, overrides, entry)
        if budget == "defaults" or not _rank(config):
            return config
        r = base.adapter.options["r"] if target is None else self._nearest(base, overrides, entry, target)
        return self.config(base, overrides, entry, r)

    def _nearest(self, base: RunConfig, overrides: Sequence[str], entry: Entry, target: int) -> int:
        """Find the rank whose number of trained parameters is nearest to `target`, as a ratio."""
        counts = {}
        for r in RANKS:
            try:
                counts[r] = trained_parameters(self.config(base, overrides, Entry(entry.adapter), r))
            except UserError:  # too large for a layer, or not divisible
                continue
        if not counts:
            raise UserError(f"{entry.adapter}: no rank of {RANKS} fits the model.")
        return min(counts, key=lambda r: abs(math.log(counts[r] / target)))

    def config(self, base: RunConfig, overrides: Sequence[str], entry: Entry, r: int | None = None) -> RunConfig:
        """Load the recipe, which is `base`, with another method, at the rank `r` or the method's own.

        Raises:
            UserError: the recipe does not fit the method, or its task does not know the reference.
        """
        sits = base.adapter or AdapterSection(type="lora")
        if entry.adapter is None:
            changes = ["adapter=null"]
        elif base.adapter is not None and entry.adapter == base.adapter.type:
            changes = [f"adapter.r={r}"] if r and "r" in base.adapter.options else []
        else:
            target = registry.get("adapter", entry.adapter).target
            own = getattr(target, "places", PLACES)
            section = {"type": entry.adapter, "towers": sits.towers, "layers": sits.layers}
            section["modules"] = sits.modules if own == PLACES else own
            known = {f"adapter.{key}" for key in AdapterSection.keys(entry.adapter) - {"type"}}
            given = [each for each in overrides if each.partition("=")[0].strip() in known]
            changes = [f"adapter={json.dumps(section)}", *given, *([f"adapter.r={r}"] if r else [])]
        parts = {"initializer": entry.initializer, **dict(entry.others)}
        for section in OTHERS:
            own = getattr(base, section)
            if parts.get(section) != (own.type if own else None):  # the recipe's own part keeps its options
                changes.append(f"{section}={json.dumps({'type': parts[section]}) if parts.get(section) else 'null'}")
        return load_config(self.recipe, [*overrides, *changes, *_reference(base, overrides, entry)])


def trained_parameters(config: RunConfig) -> int:
    """Count the parameters that a config trains."""
    return build_task(config, config.seed).describe()["trainable_parameters"]


def _rank(config: RunConfig) -> int | None:
    """Return the rank of a config's adapter; None where it has none."""
    return config.adapter.options.get("r") if config.adapter else None


def _reference(base: RunConfig, overrides: Sequence[str], entry: Entry) -> list[str]:
    """Return the changes of the recipe that make the reference of an entry; none for methods.

    Raises:
        UserError: the task does not know it.
    """
    if not entry.reference:
        return []
    known = facts_of(base.task.type).references(base)
    if entry.reference not in known:
        names = ", ".join(known) or "none at all"
        raise UserError(f"{entry.reference}: task {base.task.type} has no such reference: it has {names}.")
    given = {each.partition("=")[0].strip() for each in overrides}
    return [each for each in known[entry.reference] if not ({"engine.lr"} & given and each.startswith("engine.lr="))]


def _told(variant: Variant, config: RunConfig) -> Variant:
    """Return the variant with a row that says its parts and its rank."""
    sections = {name: getattr(config, name) for name in ("adapter", *OTHERS)}
    facts: dict[str, Any] = {
        name: None if section is None else section.model_dump(mode="json") for name, section in sections.items()
    }
    rates = variant.rates if config.engine.steps else ()  # what does not train has no rate to choose
    return Variant(variant.name, config, rates=rates, facts={**facts, "r": _rank(config)})
