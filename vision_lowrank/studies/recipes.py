"""Variants that are recipes: several files side by side, or one file with settings that vary.

A recipe is called as its file, without the beginning that all files share: ``emoji_coact.yaml`` and ``emoji_lora.yaml``
are ``coact`` and ``lora``. Recipes side by side are of one task and agree in what their numbers depend on: backbone,
data, seeds, and what the task names (``shares``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path

from ..config import RunConfig, load_config, to_tree
from ..errors import UserError
from .columns import facts_of
from .study import Study
from .variants import Variant, assignments, differing, leaves

# Keys of a config, or their beginnings, in which recipes side by side must agree whatever their task.
SHARED = ("backbone.", "data.", "seeds")


@dataclass(frozen=True)
class Recipes:
    """Recipes side by side.

    Attributes:
        paths: a config file per variant.
        rates: learning rates to choose from; empty = each recipe's own.
    """

    paths: Sequence[Path]
    rates: Sequence[float] = ()

    def study(self, folder: Path, overrides: Sequence[str] = ()) -> Study:
        """Make the study, with settings for all recipes.

        Raises:
            UserError: there is no recipe, two have one name, or they do not agree in what they must share.
        """
        names = [path.stem.removeprefix(shared_prefix(self.paths)) for path in self.paths]
        twice = next((name for name in names if names.count(name) > 1), None)
        if not names or twice:
            reason = f"two recipes are called '{twice}': rename one" if twice else "name at least one recipe"
            raise UserError(f"recipes: {reason}.")
        configs = [load_config(path, overrides) for path in self.paths]
        self._check(configs)
        variants = [Variant(name, config, rates=self.rates) for name, config in zip(names, configs, strict=True)]
        tree = to_tree(configs[0])
        facts = {
            "recipes": {name: str(path) for name, path in zip(names, self.paths, strict=True)},
            "overrides": list(overrides),
            "rates": list(self.rates),
            "backbone": tree["backbone"],
            "data": tree["data"],
            "shared": {key: value for key, value in leaves(tree) if key.startswith(_shared(configs[0]))},
        }
        return Study(folder, configs[0].task.type, variants, facts=facts)

    def _check(self, configs: Sequence[RunConfig]) -> None:
        """Refuse recipes that do not agree."""
        for path, config in zip(self.paths, configs, strict=True):
            if config.task.type != configs[0].task.type:
                raise UserError(
                    f"{self.paths[0]} is of task {configs[0].task.type} and {path} of task {config.task.type}: their "
                    "numbers cannot be compared; give recipes of one task."
                )
        shared = (*SHARED, *_shared(configs[0]))
        for key, values in differing(dict(zip(map(str, self.paths), configs, strict=True))).items():
            other = next(path for path, value in values.items() if value != values[str(self.paths[0])])
            if key.startswith(shared):
                raise UserError(
                    f"{self.paths[0]} and {other} differ in {key} ({values[str(self.paths[0])]} and {values[other]}): "
                    f"the recipes of a study share it; set it for all, with {key}=VALUE."
                )


@dataclass(frozen=True)
class Variations:
    """One recipe with settings that vary.

    Attributes:
        recipe: a config file.
        vary: such as ``adapter.r=2,4``: a key and its values; of several, every combination.
        rates: learning rates to choose from; empty = the variant's own.
    """

    recipe: Path
    vary: Sequence[str]
    rates: Sequence[float] = ()

    def study(self, folder: Path, overrides: Sequence[str] = ()) -> Study:
        """Make the study, with settings for all variants.

        Raises:
            UserError: `vary` is not of that form.
        """
        variants = [
            Variant.of(name, partial(load_config, self.recipe, [*overrides, *changes]), rates=self.rates)
            for name, changes in assignments(self.vary)
        ]
        facts = {
            "recipe": str(self.recipe),
            "overrides": list(overrides),
            "vary": list(self.vary),
            "rates": list(self.rates),
        }
        return Study(folder, self.recipe.stem, variants, facts=facts)


def _shared(config: RunConfig) -> tuple[str, ...]:
    """Return the beginnings of the keys that the task's numbers depend on."""
    return tuple(f"task.{key}" for key in facts_of(config.task.type).shares)


def shared_prefix(recipes: Sequence[Path]) -> str:
    """Return the words that the names of several files begin with, such as ``emoji_``; empty for a single file."""
    words = zip(*(recipe.stem.split("_")[:-1] for recipe in recipes), strict=False)
    same = takewhile(lambda each: len(set(each)) == 1, words)
    return "".join(f"{each[0]}_" for each in same) if len(recipes) > 1 else ""
