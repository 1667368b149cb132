"""The HTML page of ``vision-lowrank inspect`` on a trained artefact: one self-contained file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..files import write_text
from . import plots
from .report import template


def write_inspection(
    path: Path,
    summary: Mapping[str, Any],
    counts: Mapping[str, plots.Points],
    spectrum: tuple[Sequence[float], Sequence[float], Sequence[int]],
    similarity: Sequence[Sequence[float]],
) -> Path:
    """Write the page.

    Args:
        path: the file.
        summary: what the template names: ``name``, ``method``, ``backbone``, ``layers`` and their totals.
        counts: kind of layer -> (threshold, number of intruders).
        spectrum: singular values of the shown layer, frozen and tuned, and the indices of its intruders.
        similarity: (m, m) cosines of the shown layer.

    Returns:
        `path`.
    """
    page = template("inspection.html.jinja").render(
        {
            **summary,
            "counts": Markup(plots.intruder_counts(counts)),
            "spectrum": Markup(plots.spectrum(*spectrum, "singular values")),
            "similarity": Markup(plots.similarity(similarity, "cosines")),
        }
    )
    write_text(path, page)
    return path
