"""Numbers as the tables show them, and tables as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence


def mean_and_spread(value: Mapping[str, float], scale: float, digits: int) -> str:
    """Format ``mean ± spread`` from mean, std and n; without a spread of one seed, or where all seeds gave the same."""
    spread = f" ± {scale * value['std']:.{digits}f}" if value["n"] > 1 and value["std"] > 0 else ""
    return f"{scale * value['mean']:.{digits}f}{spread}"


def percent(value: Mapping[str, float]) -> str:
    """Format a share as :func:`mean_and_spread` does, in percent."""
    return mean_and_spread(value, 100, 1)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |\n" for row in rows)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Format rows, the header first, as comma-separated values."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
