"""Which metrics tables have, by what a task says of itself, and the tables of a study.

A table is (title, header, lines). Shares are in percent, ``mean ± spread`` over seeds. Functions of `result` take what
:func:`~vision_lowrank.studies.study.run_study` gives, or the JSON of it that was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..errors import UserError
from ..metrics.names import is_share, title, told
from ..registry import registry
from ..viz.text import mean_and_spread, percent

Table = tuple[str, list[str], list[list[str]]]
Score = Mapping[str, float]
Row = Mapping[str, Any]
LEFT_OUT = "left out: "
# What a row may say of a step -> its column, and how it is shown. A ratio makes seconds superfluous.
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "step_ratio": ("step (ratio)", "{:.2f}".format),
    "step_seconds": ("step (ms)", lambda seconds: f"{1000 * seconds:.0f}"),
    "peak_memory": ("step memory (MiB)", lambda size: f"{size / 2**20:.0f}"),
}


def facts_of(task: str) -> Any:
    """Return the class registered as `task`, for what it says of its metrics.

    It is a :class:`~vision_lowrank.engine.task.Task`.
    """
    return registry.get("task", task).target


def printed(task: str | None, names: Iterable[str]) -> list[str]:
    """Choose which metrics of one run are printed: the task's columns, those of a set for every test set as it is.

    A task that lists none, or whose metrics have other names, prints all.

    Args:
        task: its registered name; None prints all.
        names: of all metrics, such as ``test/seen/auc``; ``test/seen/jpeg-70/auc`` is not of a set as it is.
    """
    known = list(names)
    columns = facts_of(task).columns if task else ()
    sets = dict.fromkeys(name.rpartition("/")[0] for name in known if name.startswith("test/") and name.count("/") == 2)
    found = [name for name in columns if name in known]
    return found + [name for each in sets for metric in columns if (name := f"{each}/{metric}") in known] or known


def compared(task: str, names: Iterable[str]) -> list[str]:
    """Choose the metrics of a study's table: the headline on every set as it is; or the columns, if it is of no set.

    Args:
        task: its registered name.
        names: of all metrics of the model without training.
    """
    facts = facts_of(task)
    if "/" in facts.headline:
        return list(facts.columns or (facts.headline,))
    return [name for name in names if name.count("/") == 2 and name.endswith(f"/{facts.headline}")]


def headline(task: str, names: Iterable[str], kind: str = "test/") -> str | None:
    """Return the full name of the metric that stands for the result, of the first set whose name begins with `kind`."""
    facts = facts_of(task)
    return next((name for name in compared(task, names) if name == facts.headline or name.startswith(kind)), None)


def column(task: str, name: str) -> str:
    """Name the column of a metric: the set, where it is the headline of one."""
    facts = facts_of(task)
    return title(name) if name in facts.columns else told(name).removesuffix(f"/{facts.headline}")


def shown(name: str, value: Score | None) -> str:
    """Format one cell: a share in percent, another number with three decimals; ``-`` where there is none."""
    if value is None:
        return "-"
    return percent(value) if is_share(name) else mean_and_spread(value, 1, 3)


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Make the table of a study, and one of its task's series, where that has one."""
    return [(result["title"], *table(result)), *_series_table(result)]


def table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Make header and lines: the model without training first, then every variant, with what could not be done of it.

    Where the study says in which settings its variants differ, the table need not: learning rate and rank are left out.
    """
    facts, done = facts_of(result["task"]), done_rows(result)
    names = compared(result["task"], result["baseline"])
    titles = [column(result["task"], name) for name in names]
    about = () if "settings" in result else ("lr", "r") if any("r" in row for row in done) else ("lr",)
    costs = [key for key in COSTS if any(key in row for row in done)]
    costs = [key for key in costs if key != "step_seconds" or "step_ratio" not in costs]
    header = ["method", *about, *titles, "trained parameters", *(COSTS[key][0] for key in costs)]
    first = [shown(name, result["baseline"].get(name)) for name in names]
    lines = [[facts.baseline, *[""] * len(about), *first, "0", *[""] * len(costs)]]
    for row in result["rows"]:
        if "failed" in row:
            lines.append(_note(row["method"], row["failed"], len(header)))
            continue
        told = {"lr": f"{row['lr']:g}" if row["trained_parameters"] else "", "r": str(row.get("r") or "")}
        cells = [shown(name, row["metrics"].get(name)) for name in names]
        size = f"{row['trained_parameters']:,}"
        if result.get("target") and not 2 / 3 < row["trained_parameters"] / result["target"] < 3 / 2:
            size += f" (target {result['target']:,})"
        cost = [COSTS[key][1](row[key]) if key in row else "-" for key in costs]
        lines.append([row["method"], *(told[name] for name in about), *cells, size, *cost])
        for job, reason in row.get("left_out", {}).items():
            lines.append(_note(f"{row['method']}: {job}", reason, len(header)))
    return header, lines


def _series_table(result: Mapping[str, Any]) -> list[Table]:
    facts = facts_of(result["task"])
    if facts.series is None:
        return []
    rows = [{"method": facts.baseline, "metrics": result["baseline"]}, *done_rows(result)]
    lines = [[row["method"], *map(percent, series(result, row))] for row in rows]
    numbers = [str(number) for number in range(len(lines[0]) - 1)]
    return [(facts.series.title, ["method", *numbers], lines)]


def series(result: Mapping[str, Any], row: Row) -> list[Score]:
    """Return a row's values of the task's series."""
    names, found = facts_of(result["task"]).series.names, []
    while (name := names.format(len(found))) in row["metrics"]:
        found.append(row["metrics"][name])
    return found


def done_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return the rows of the variants that could run."""
    return [row for row in result["rows"] if "failed" not in row]


def complete_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a study that is published as a whole.

    Raises:
        UserError: something of it could not be done.
    """
    for row in result["rows"]:
        for reason in [row["failed"]] if "failed" in row else row.get("left_out", {}).values():
            raise UserError(f"{row['method']}: {reason}")
    return result["rows"]


def split_notes(lines: Sequence[list[str]]) -> tuple[list[list[str]], list[str]]:
    """Split a table's lines into those of numbers, and sentences that say what is not there."""
    notes = [f"{line[0]}: {line[1]}" for line in lines if line[1].startswith(LEFT_OUT)]
    return [line for line in lines if not line[1].startswith(LEFT_OUT)], notes


def _note(name: str, reason: str, length: int) -> list[str]:
    """Make a line that says what is not there."""
    return [name, f"{LEFT_OUT}{reason}", *[""] * (length - 2)]
