"""Few-shot benchmarks: a grid of comparisons over data sets and shots, and the tables that papers print.

A benchmark folder holds a sweep folder per data set and number of shots (:mod:`vision_lowrank.studies.comparison`)::

    benchmark.json                    every cell: mean, spread and n of every metric, and the untrained model's
    benchmark.md, .csv, .tex          the tables

Protocols (metrics of :class:`~vision_lowrank.tasks.classification.fewshot.FewShot`): ``fewshot`` tests all classes;
``base_to_novel`` trains on the first half of the classes and adds novel accuracy and the harmonic mean; ``transfer``
trains on one data set and adds what its recipe lists under ``task.transfer``: other data sets or domains. Averages over
data sets are unweighted; the averaged harmonic mean is that of the averaged base and averaged novel accuracy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..config import environment
from ..files import write_text
from ..metrics.classification import harmonic_mean
from ..viz.text import csv_text, markdown, percent
from .comparison import Sweep, compare
from .variants import Protocol, check_protocol, data_override

UNTRAINED = "zero-shot"
Cell = Mapping[str, float]
Table = tuple[str, list[str], list[list[str]]]


@dataclass(frozen=True)
class Grid:
    """What a benchmark runs.

    Attributes:
        sweep: recipe, methods, folder, overrides, budget and learning rates, as of one comparison.
        protocol: what is tested.
        shots: numbers of training pictures per class; empty for the recipe's own.
        data: names of data sets: registered ones, or those of ``data: {type: coop}``; empty for the recipe's own.
        data_root: folder that holds the data sets of ``coop``.
    """

    sweep: Sweep
    protocol: Protocol = "fewshot"
    shots: Sequence[int] = ()
    data: Sequence[str] = ()
    data_root: str | None = None

    def cells(self) -> list[tuple[str, int, Sweep]]:
        """(data set, shots, its sweep), data sets outermost."""
        base = self.sweep.base
        found = []
        for name in self.data or [base.data.type]:
            for shots in self.shots or [base.task.shots]:
                overrides = [*self.sweep.overrides, f"task.shots={shots}", *self._data_override(name)]
                if self.protocol == "base_to_novel":
                    overrides.append("task.protocol=base_to_novel")
                folder = self.sweep.folder / name / f"shots-{shots}"
                found.append((name, shots, replace(self.sweep, folder=folder, overrides=tuple(overrides))))
        return found

    def _data_override(self, name: str) -> list[str]:
        return [data_override(name, self.data_root)] if self.data else []


def benchmark(grid: Grid, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run what is missing and write the tables.

    Returns:
        What ``benchmark.json`` holds.

    Raises:
        UserError: an unknown protocol or data set, or a comparison in which no method could run.
    """
    check_protocol(grid.protocol)
    rows, cells = [], grid.cells()
    for index, (data, shots, sweep) in enumerate(cells):
        say(f"{data}, {shots} shots ({index + 1} of {len(cells)})")
        result = compare(sweep, say)
        rows.append({"data": data, "shots": shots, "method": UNTRAINED, "metrics": result["baseline"]})
        for row in result["rows"]:
            kept = {key: row[key] for key in ("method", "metrics", "failed", "lr", "trained_parameters") if key in row}
            rows.append({"data": data, "shots": shots, **kept})
    result = {"protocol": grid.protocol, "environment": environment(), "rows": rows}
    folder = grid.sweep.folder
    write_text(folder / "benchmark.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_tables(tables(result), folder / "benchmark")
    return result


def tables(result: Mapping[str, Any]) -> list[Table]:
    """(title, header, lines) for every number of shots: the untrained model first, then the methods."""
    data = list(dict.fromkeys(row["data"] for row in result["rows"]))
    methods = list(dict.fromkeys(row["method"] for row in result["rows"]))
    found = []
    for shots in dict.fromkeys(row["shots"] for row in result["rows"]):
        cells = {(row["method"], row["data"]): row for row in result["rows"] if row["shots"] == shots}
        columns = _columns(result["protocol"], [cells[UNTRAINED, each]["metrics"] for each in data], data)
        lines = []
        for method in methods:
            metrics = {each: cells[method, each].get("metrics") for each in data}
            lines.append([method, *(_shown(column, metrics) for column in columns.values())])
        found.append((f"{result['protocol']}, {shots} shots", ["method", *columns], lines))
    return found


def write_tables(found: Sequence[Table], path: Path) -> None:
    """`path` with ``.md``, ``.csv`` and ``.tex``, each with all tables (title, header, lines)."""
    texts: dict[str, list[str]] = {"md": [], "csv": [], "tex": []}
    for title, header, lines in found:
        texts["md"].append(f"**{title}**\n\n{markdown(header, lines)}")
        texts["csv"].append(csv_text([["table", *header], *([title, *line] for line in lines)]))
        texts["tex"].append(latex(title, header, lines))
    for suffix, parts in texts.items():
        write_text(path.with_name(f"{path.name}.{suffix}"), "\n".join(parts))


def latex(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A ``tabular`` with booktabs rules."""
    rows = [" & ".join(map(_escaped, line)) + r" \\" for line in (header, *lines)]
    body = "\n".join([rows[0], r"\midrule", rows[1], r"\midrule", *rows[2:]])
    columns = "l" + "r" * (len(header) - 1)
    return f"% {title}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


# A column: for each data set the names of the metrics whose (averaged) values it combines.
Column = dict[str, tuple[str, ...]]


def _columns(protocol: str, baselines: Sequence[Mapping[str, Cell]], data: Sequence[str]) -> dict[str, Column]:
    """Columns by title; what a data set's metrics are called is read off the untrained model's."""
    columns: dict[str, Column] = {}
    firsts = {name: _first(metrics, "test/") for name, metrics in zip(data, baselines, strict=True)}
    if protocol == "base_to_novel":
        novel = {name: _first(metrics, "transfer/novel-") for name, metrics in zip(data, baselines, strict=True)}
        for name in data:
            columns |= {
                f"{name} base": {name: (firsts[name],)},
                f"{name} novel": {name: (novel[name],)},
                f"{name} HM": {name: (firsts[name], novel[name])},
            }
        if len(data) > 1:
            columns |= {
                "mean base": {name: (firsts[name],) for name in data},
                "mean novel": {name: (novel[name],) for name in data},
                "mean HM": {name: (firsts[name], novel[name]) for name in data},
            }
        return columns
    for name, metrics in zip(data, baselines, strict=True):
        tests = [key for key in metrics if key.startswith("test/") and key.endswith("/accuracy")]
        others = [key for key in metrics if key.startswith("transfer/") and key.endswith("/accuracy")]
        shown = tests + others if protocol == "transfer" or len(data) == 1 else tests[:1]
        for key in shown:
            title = key.removesuffix("/accuracy").partition("/")[2]
            columns[title if len(shown) > 1 else name] = {name: (key,)}
    if len(data) > 1 and protocol == "fewshot":
        columns["mean"] = {name: (firsts[name],) for name in data}
    return columns


def _shown(column: Column, metrics: Mapping[str, Mapping[str, Cell] | None]) -> str:
    """One cell: ``mean ± spread`` of a single metric, else the combined mean."""
    if any(metrics[name] is None for name in column):
        return "-"
    values = [[metrics[name][key] for key in keys] for name, keys in column.items()]
    if len(values) == 1 and len(values[0]) == 1:
        return percent(values[0][0])
    means = [fmean(each["mean"] for each in group) for group in zip(*values, strict=True)]
    return f"{100 * (harmonic_mean(*means) if len(means) == 2 else means[0]):.1f}"


def _first(metrics: Mapping[str, Any], prefix: str) -> str:
    return next(name for name in metrics if name.startswith(prefix) and name.endswith("/accuracy"))


def _escaped(text: str) -> str:
    return re.sub(r"[_%&#${}]", r"\\\g<0>", text).replace("±", r"$\pm$")
