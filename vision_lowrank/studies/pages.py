"""The files of a study::

study.json                 everything, with versions and commands
study.md, .csv, .tex       its tables
pareto.svg                 the headline against trained parameters
series.svg                 of tasks with a series, such as sessions: its values, a line per variant
report.html                tables and plots on one page that loads nothing
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..files import write_text
from ..viz.pages import template
from ..viz.text import csv_text, markdown
from .columns import Table, facts_of, tables
from .figures import pareto_figure, series_figure

FILES = (*(f"study.{suffix}" for suffix in ("md", "csv", "tex", "json")), "pareto.svg", "series.svg", "report.html")


def write_study(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the files of a study in which something could run."""
    write_json(folder / "study.json", result)
    write_tables(tables(result), folder / "study")
    figures = {"pareto.svg": pareto_figure(result), "series.svg": series_figure(result)}
    for name, figure in figures.items():
        if figure is not None:
            write_text(folder / name, figure)
    shown = [Markup(figure) for figure in figures.values() if figure is not None]
    context = {"name": folder.resolve().name, "facts": facts_of(result["task"]), "tables": tables(result)}
    page = template("study.html.jinja").render({**context, "figures": shown, **result})
    write_text(folder / "report.html", page)


def study_files(folder: Path) -> list[Path]:
    """Return those of the files that a study has."""
    return [folder / name for name in FILES if (folder / name).is_file()]


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON for people and programs."""
    write_text(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def write_tables(found: Sequence[Table], path: Path) -> None:
    """Write `path` with ``.md``, ``.csv`` and ``.tex``, each with all tables."""
    texts: dict[str, list[str]] = {"md": [], "csv": [], "tex": []}
    for title, header, lines in found:
        texts["md"].append(f"**{title}**\n\n{markdown(header, lines)}")
        texts["csv"].append(csv_text([["table", *header], *([title, *line] for line in lines)]))
        texts["tex"].append(latex(title, header, lines))
    for suffix, parts in texts.items():
        write_text(path.with_name(f"{path.name}.{suffix}"), "\n".join(parts))


def latex(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a ``tabular`` with booktabs rules."""
    rows = [" & ".join(map(_escaped, line)) + r" \\" for line in (header, *lines)]
    body = "\n".join([rows[0], r"\midrule", rows[1], r"\midrule", *rows[2:]])
    columns = "l" + "r" * (len(header) - 1)
    return f"% {title}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


def _escaped(text: str) -> str:
    return re.sub(r"[_%&#${}]", r"\\\g<0>", text).replace("±", r"$\pm$")
