"""Studies of class-incremental learning: several methods, several seeds, the same sessions for all.

A method is a recipe of ``task: {type: incremental}``, since methods differ in losses, heads and schedules too, not only
in their adapters. It is called as its file, without the beginning that all files share: ``emoji_coact.yaml`` and
``emoji_lora.yaml`` are ``coact`` and ``lora``. A study folder::

    METHOD/lr-RATE/seed-N/              the runs, as :mod:`vision_lowrank.studies.run` makes them
    incremental.json                    every metric's mean, spread and n, counts of every seed, settings that differ
    incremental.md, .csv, .tex          what the sessions come to, and the accuracy after each of them
    sessions.svg                        the accuracy after each session, a line per method
    report.html                         tables and plot on one page

The first row is always *prototype only*, the model without training. All recipes agree in what it and the test depend
on (``SHARED``), so it is the same for all. Learning rates, where several are given, are chosen per method by the first
seed's validation accuracy, never by test data. Calling :func:`study` again goes on where it stopped, in the middle of a
session if need be. A method that cannot run is listed with its reason and does not stop the others.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..config import RunConfig, environment, load_config, to_tree
from ..errors import UserError
from ..files import write_text
from ..viz.plots import UNTRAINED, session_curves
from ..viz.report import template
from ..viz.text import percent
from .grid import Table, write_tables
from .run import open_run, run_seed
from .trials import Row, each_method, every_seed

# Keys of a config, or their beginnings, in which all recipes of a study must agree.
SHARED = ("backbone.", "data.", "task.protocol.", "task.seeds", "task.mask_unseen", "task.cosine")
# Columns of the first table; base and new accuracy are those after the last session.
COLUMNS = {
    "last": "incremental/last_accuracy",
    "average": "incremental/average_accuracy",
    "base": "incremental/base_accuracy",
    "new": "incremental/new_accuracy",
    "harmonic mean": "incremental/harmonic_mean",
    "performance drop": "incremental/performance_drop",
    "forgetting": "incremental/forgetting",
}


@dataclass(frozen=True)
class Study:
    """What to compare.

    Attributes:
        recipes: a config file per method.
        folder: where everything goes.
        overrides: dotted assignments for all recipes.
        seeds: for all recipes; empty = the recipes' own.
        rates: learning rates to choose from; empty = each recipe's own.
    """

    recipes: Sequence[Path]
    folder: Path
    overrides: Sequence[str] = ()
    seeds: Sequence[int] = ()
    rates: Sequence[float] = ()

    @cached_property
    def methods(self) -> dict[str, RunConfig]:
        """The checked configs by the methods' names, in the order of the recipes.

        Raises:
            UserError: there are none, two have one name, one is no class-incremental recipe, or they do not agree in
                what all must share.
        """
        seeds = [f"task.seeds={list(self.seeds)}"] if self.seeds else []
        names = [recipe.stem.removeprefix(shared_prefix(self.recipes)) for recipe in self.recipes]
        twice = next((name for name in names if names.count(name) > 1), None)
        if not names or twice:
            reason = f"two recipes are called '{twice}': rename one" if twice else "name at least one recipe"
            raise UserError(f"incremental: {reason}.")
        configs = [load_config(recipe, [*self.overrides, *seeds]) for recipe in self.recipes]
        for recipe, config in zip(self.recipes, configs, strict=True):
            if config.task.type != "incremental":
                raise UserError(
                    f"{recipe}: its task is {config.task.type}: give recipes of `task: {{type: incremental}}`."
                )
        for key, values in _differing(configs).items():
            if key.startswith(SHARED):
                other = next(index for index, value in enumerate(values) if value != values[0])
                raise UserError(
                    f"{self.recipes[0]} and {self.recipes[other]} differ in {key} ({values[0]} and {values[other]}): "
                    f"the methods of a study share it; set it for all, with {key}=VALUE."
                )
        return dict(zip(names, configs, strict=True))


def shared_prefix(recipes: Sequence[Path]) -> str:
    """The words that the names of several files begin with, such as ``emoji_``; empty for a single file."""
    words = zip(*(recipe.stem.split("_")[:-1] for recipe in recipes), strict=False)
    same = takewhile(lambda each: len(set(each)) == 1, words)
    return "".join(f"{each[0]}_" for each in same) if len(recipes) > 1 else ""


def study(plan: Study, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run what is missing of a study and write its files.

    Args:
        plan: what to compare.
        say: told what is being done, one line at a time.

    Returns:
        What ``incremental.json`` holds.

    Raises:
        UserError: the recipes do not fit together, or no method could run; the message is then the first one's.
    """
    methods = plan.methods
    rows = each_method({name: partial(_row, plan, name, say) for name in methods}, say)
    done = [row for row in rows if "failed" not in row]
    shared = to_tree(next(iter(methods.values())))
    names = [row["method"] for row in done]
    settings = _differing([_at(methods[row["method"]], row["lr"]) for row in done])
    result = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "recipes": {name: str(recipe) for name, recipe in zip(methods, plan.recipes, strict=True)},
        "overrides": list(plan.overrides),
        "rates": list(plan.rates),
        "seeds": list(shared["task"]["seeds"]),
        "environment": environment(),
        **{name: shared[name] for name in ("backbone", "data")},
        "protocol": shared["task"]["protocol"],
        "settings": {key: dict(zip(names, values, strict=True)) for key, values in settings.items()},
        "baseline": done[0]["baseline"],
        "rows": rows,
    }
    write_text(plan.folder / "incremental.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_tables(tables(result), plan.folder / "incremental")
    write_text(plan.folder / "sessions.svg", figure(result))
    write_text(plan.folder / "report.html", page(plan.folder.resolve().name, result))
    return result


def tables(result: Mapping[str, Any]) -> list[Table]:
    """What the sessions come to, and the accuracy after each: prototype only first; in percent, mean ± spread."""
    rows = [{"method": UNTRAINED, "metrics": result["baseline"], "trained_parameters": 0}, *result["rows"]]
    header, lines, sessions = ["method", *COLUMNS, "trained parameters"], [], []
    for row in rows:
        if "failed" in row:
            lines.append([row["method"], f"left out: {row['failed']}", *[""] * (len(header) - 2)])
            continue
        metrics = row["metrics"]  # of a single session, what needs two is not there
        cells = [percent(metrics[name]) if name in metrics else "-" for name in COLUMNS.values()]
        lines.append([row["method"], *cells, f"{row['trained_parameters']:,}"])
        sessions.append([row["method"], *map(percent, _sessions(metrics))])
    numbers = [str(session) for session in range(len(sessions[0]) - 1)]
    return [
        ("class-incremental learning", header, lines),
        ("accuracy after every session", ["method", *numbers], sessions),
    ]


def figure(result: Mapping[str, Any]) -> str:
    """Accuracy after every session, as SVG."""
    done = [row for row in result["rows"] if "failed" not in row]
    points = {
        row["method"]: [(value["mean"], value["std"]) for value in _sessions(row["metrics"])]
        for row in [*done, {"method": UNTRAINED, "metrics": result["baseline"]}]
    }
    baseline = points.pop(UNTRAINED)
    return session_curves(points, baseline, "accuracy over all classes seen")


def page(name: str, result: Mapping[str, Any]) -> str:
    """The self-contained report."""
    context = {"name": name, "tables": tables(result), "plot": Markup(figure(result)), **result}
    return template("incremental.html.jinja").render(context)


def _row(plan: Study, method: str, say: Callable[[str], None]) -> Row:
    """Choose the rate and train every seed."""
    config = plan.methods[method]

    def run(rate: float, seed: int) -> Row:
        own, folder = _at(config, rate), plan.folder / method / f"lr-{rate:g}"
        open_run(folder, own)
        return run_seed(own, seed, folder / f"seed-{seed}")

    rates, seeds = list(plan.rates) or [config.engine.lr], config.task.seeds
    row, results = every_seed(run, rates, seeds, lambda line: say(f"{method}: {line}"))
    return {
        "method": method,
        **row,
        "train_hashes": [each["facts"]["train_hash"] for each in results],
        "counts": {str(seed): each["facts"]["incremental"] for seed, each in zip(seeds, results, strict=True)},
    }


def _at(config: RunConfig, rate: float) -> RunConfig:
    """`config` with that learning rate."""
    return config.model_copy(update={"engine": config.engine.model_copy(update={"lr": rate})})


def _sessions(metrics: Mapping[str, Any]) -> list[Mapping[str, float]]:
    """Accuracies after the sessions 0, 1, …, T."""
    found: list[Mapping[str, float]] = []
    while (name := f"session/{len(found)}/accuracy") in metrics:
        found.append(metrics[name])
    return found


def _differing(configs: Sequence[RunConfig]) -> dict[str, list[Any]]:
    """Dotted keys in which configs differ, but for names of folders, and each one's value; None where it has none."""
    leaves = [dict(_leaves(to_tree(config) | {"name": "", "out": ""})) for config in configs]
    keys = dict.fromkeys(key for each in leaves for key in each)
    found = {key: [each.get(key) for each in leaves] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is not a section."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
