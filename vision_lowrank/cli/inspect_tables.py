"""The numbers of ``vision-lowrank inspect ARTEFACT`` as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..viz.inspection import SCALED


def tables(numbers: Mapping[str, Any]) -> Iterator[Table | str]:
    """Yield a table for every section that there is, or a line that says why there is none."""
    sections = {
        "forgetting": forgetting_table,
        "mitigation": mitigation_table,
        "separation": separation_table,
    }
    yield f"weights: {numbers['refused']}" if "refused" in numbers else layers_table(numbers)
    for name, table in sections.items():
        if name in numbers:
            section = numbers[name]
            yield f"{name}: {section['refused']}" if "refused" in section else table(section)


def layers_table(numbers: Mapping[str, Any]) -> Table:
    """Make a table of size, effective rank and intruders of every layer's ΔW."""
    title = f"{numbers['method']} on {numbers['backbone']}: {numbers['total']} intruders of {numbers['slots']} vectors"
    table = Table(title=escape(title), show_footer=True)
    table.add_column("layer", overflow="fold", footer="medians, total")
    table.add_column("kind")
    footers = (f"{numbers['median_norm']:.3g}", f"{numbers['median_rank']:.2f}", str(numbers["total"]))
    for name, footer in zip(("‖ΔW‖/‖W‖", "effective rank", "intruders"), footers, strict=True):
        table.add_column(name, justify="right", footer=footer)
    for row in numbers["layers"]:
        values = (f"{row['relative_norm']:.3g}", f"{row['effective_rank']:.2f}", str(row["intruders"]))
        table.add_row(row["name"], row["kind"], *values)
    return table


def forgetting_table(section: Mapping[str, Any]) -> Table:
    """Make a table of the accuracy of the frozen model, of the adapted one, and the difference, for every set."""
    table = _numbers("forgetting (accuracies in percent)", "set", ("frozen", "adapted", "lost"))
    for name in section["after"]:
        if name.endswith(f"/{section['headline']}"):
            values = (section[part].get(name) for part in ("before", "after", "lost"))
            table.add_row(escape(name.rpartition("/")[0]), *(_percent(value) for value in values))
    return table


def mitigation_table(section: Mapping[str, Any]) -> Table:
    """Make a table of accuracies along λ; `kept` only where there are sets that are recognised by prompts."""
    parts = ["task", "kept"] if section["kept_sets"] else ["task"]
    columns = [f"{part}: {label}" for part in parts for label in SCALED.values()]
    table = _numbers("along λ (accuracies in percent)", "λ", columns)
    for row in section["rows"]:
        table.add_row(f"{row['keep']:g}", *(_percent(row[name][part]) for part in parts for name in SCALED))
    return table


def separation_table(section: Mapping[str, Any]) -> Table:
    """Make a table of measures of the frozen and of the adapted model.

    The page says too what is lost against clean pictures.
    """
    measures = list(section["frozen"]["clean"])
    table = _numbers(f"separation of '{section['set']}'", "pictures", ["model", *measures, "cosine"])
    for pictures in section["frozen"]:
        for model in ("frozen", "adapted"):
            values = section[model][pictures]
            cells = [f"{values[name]:.3g}" for name in measures]
            same = f"{values['consistency']:.3f}" if "consistency" in values else ""
            table.add_row(pictures if model == "frozen" else "", model, *cells, same)
    return table


def _numbers(title: str, first: str, columns: Any) -> Table:
    table = Table(title=escape(title))
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"
