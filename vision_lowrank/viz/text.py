"""Numbers as the tables show them, and tables as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence


def percent(value: Mapping[str, float]) -> str:
    """Format ``mean ± spread`` in percent from a fraction's mean, std and n; without a spread where there is none."""
    spread = f" ± {100 * value['std']:.1f}" if value["n"] > 1 and value["std"] > 0 else ""
    return f"{100 * value['mean']:.1f}{spread}"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |\n" for row in rows)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Format rows, the header first, as comma-separated values."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
