"""A grid of studies over data sets and numbers of training pictures, and the tables that papers print.

A grid's folder holds a study's folder per cell, ``DATA/shots-N``, and::

    grid.json                  every cell: mean, spread and n of every metric, the model without training first
    grid.md, .csv, .tex        the tables

The protocol says what the tables show (sets ``test/…`` and ``transfer/…``, see the task): ``all`` a column per data
set; ``base_to_novel``, which trains on the first half of the classes, also those of the other half and the harmonic
mean; ``transfer`` what the recipe lists under ``task.transfer``: other data sets or domains. Averages over data sets
are unweighted; the averaged harmonic mean is that of the averaged base and averaged novel metric. A cell in which
nothing could run is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from ..config import environment
from ..errors import UserError
from ..metrics.classification import harmonic_mean
from .columns import Score, Table, compared, facts_of, shown
from .launch import Launcher, Say, here
from .pages import write_json, write_tables
from .study import Study, quiet, run_studies
from .variants import Tested, check_protocol, data_override

# What a grid's file holds of a study's row.
KEPT = ("method", "metrics", "seeds", "failed", "lr", "trained_parameters")


class Plan(Protocol):
    """What is run in every cell: :class:`~.methods.Methods`, :class:`~.recipes.Recipes` or one like them."""

    def study(self, folder: Path, overrides: Sequence[str] = ()) -> Study:
        """Make the study, with settings for all its variants."""
        ...


@dataclass(frozen=True)
class Grid:
    """What to run.

    Attributes:
        plan: what is run in every cell.
        folder: where everything goes.
        overrides: settings for all.
        protocol: what is tested.
        shots: numbers of training pictures per class; empty for the recipe's own.
        data: names of data sets: registered ones, or those of ``data: {type: coop}``; empty for the recipe's own.
        data_root: folder that holds the data sets of ``coop``.
    """

    plan: Plan
    folder: Path
    overrides: Sequence[str] = ()
    protocol: Tested = "all"
    shots: Sequence[int] = ()
    data: Sequence[str] = ()
    data_root: str | None = None

    def cells(self) -> list[tuple[str, int | None, Study]]:
        """Return (data set, shots, its study), data sets outermost.

        Raises:
            UserError: an unknown protocol or data set, or recipes that do not fit.
        """
        check_protocol(self.protocol)
        data = [(name, [data_override(name, self.data_root)]) for name in self.data] or [("", [])]
        shots = [(f"shots-{number}", [f"task.shots={number}"]) for number in self.shots] or [("", [])]
        protocol = ["task.protocol=base_to_novel"] if self.protocol == "base_to_novel" else []
        found = []
        for name, source in data:
            for label, few in shots:
                study = self.plan.study(self.folder, [*self.overrides, *few, *source, *protocol])
                config = next((each.config for each in study.variants if each.config is not None), None)
                cell = name or (config.data.type if config else "data")
                number = getattr(config.task, "shots", None) if config else None
                folder = self.folder / cell / (label or (f"shots-{number}" if number else ""))
                found.append((cell, number, replace(study, folder=folder)))
        return found


def run_grid(grid: Grid, launch: Launcher = here, say: Say = quiet) -> dict[str, Any]:
    """Run what is missing and write the tables.

    Returns:
        What ``grid.json`` holds.

    Raises:
        UserError: an unknown protocol or data set, or nothing could run in any cell.
    """
    cells = grid.cells()
    results = run_studies([study for _, _, study in cells], launch, say)
    if all(result["baseline"] is None for result in results):
        raise UserError(results[0]["rows"][0]["failed"])
    rows: list[dict[str, Any]] = []
    for (data, shots, _), result in zip(cells, results, strict=True):
        cell = {"data": data, "shots": shots}
        if result["baseline"] is not None:
            rows.append({**cell, "method": facts_of(result["task"]).baseline, "metrics": result["baseline"]})
        for row in result["rows"]:
            kept = {key: row[key] for key in KEPT if key in row}
            rows.append({**cell, **kept})
    found = {
        "task": results[0]["task"],
        "protocol": grid.protocol,
        "sizes": results[0].get("sizes", ""),
        "environment": environment(),
        "rows": rows,
    }
    write_json(grid.folder / "grid.json", found)
    write_tables(tables(found), grid.folder / "grid")
    return found


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Make (title, header, lines) for every number of shots: the model without training first, then the variants."""
    data = list(dict.fromkeys(row["data"] for row in result["rows"]))
    methods = list(dict.fromkeys(row["method"] for row in result["rows"]))
    found = []
    for shots in dict.fromkeys(row["shots"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["shots"] == shots]
        cells = {(row["method"], row["data"]): row.get("metrics") for row in rows}
        known = {name: next((row["metrics"] for row in rows if row["data"] == name and "metrics" in row), {})
                 for name in data}  # fmt: skip
        columns = _columns(result["protocol"], result["task"], known)
        lines = []
        for method in methods:
            metrics = {name: cells.get((method, name)) for name in data}
            lines.append([method, *(_shown(column, metrics) for column in columns.values())])
        words = (result["protocol"], "" if shots is None else f"{shots} shots", result.get("sizes"))
        found.append((", ".join(filter(None, words)), ["method", *columns], lines))
    return found


# A column: for each data set the names of the metrics whose (averaged) values it combines.
Column = dict[str, tuple[str, ...]]


def _columns(protocol: str, task: str, known: Mapping[str, Mapping[str, Score]]) -> dict[str, Column]:
    """Return columns by title, from the names of every data set's metrics.

    Nothing is known of one in which nothing ran.
    """
    shown = {name: compared(task, metrics) for name, metrics in known.items()}
    kinds = {name: {kind: [each for each in names if each.startswith(kind)] for kind in ("test/", "transfer/")}
             for name, names in shown.items()}  # fmt: skip
    firsts = {name: tuple((kinds[name]["test/"] or names)[:1]) for name, names in shown.items()}
    several = [name for name in known if firsts[name]]
    if protocol == "base_to_novel":
        novel = {
            name: tuple(each for each in names if each.startswith("transfer/novel-"))[:1]
            for name, names in shown.items()
        }
        groups = {name: [name] for name in known} | ({"mean": several} if len(known) > 1 else {})
        columns: dict[str, Column] = {}
        for title, names in groups.items():
            columns |= {
                f"{title} base": {name: firsts[name] for name in names},
                f"{title} novel": {name: novel[name] for name in names},
                f"{title} HM": {name: firsts[name] + novel[name] for name in names},
            }
        return columns
    columns = {}
    for name in known:
        tests, others = kinds[name]["test/"], kinds[name]["transfer/"]
        wanted = tests + others if protocol == "transfer" or len(known) == 1 else list(firsts[name])
        for key in wanted if len(wanted) > 1 else [None]:
            title = key.removesuffix(f"/{facts_of(task).headline}").partition("/")[2] if key else name
            columns[title] = {name: (key,) if key else firsts[name]}
    if len(known) > 1 and protocol == "all":
        columns["mean"] = {name: firsts[name] for name in several}
    return columns


def _shown(column: Column, metrics: Mapping[str, Mapping[str, Score] | None]) -> str:
    """Format one cell: ``mean ± spread`` of one metric, else the combined mean; ``-`` where something is missing."""
    values = [[(metrics[name] or {}).get(key) for key in keys] for name, keys in column.items()]
    if not values or any(not each or None in each for each in values):
        return "-"
    name = next(iter(column.values()))[0]
    if len(values) == 1 and len(values[0]) == 1:
        return shown(name, values[0][0])
    means = [fmean(each["mean"] for each in group) for group in zip(*values, strict=True)]
    return shown(name, {"mean": harmonic_mean(*means) if len(means) == 2 else means[0], "std": 0.0, "n": 1})
