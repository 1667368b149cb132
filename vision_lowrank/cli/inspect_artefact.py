"""``vision-lowrank inspect ARTEFACT``: what training did to the weights, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from ..analysis.intruders import count_grid, random_similarity, similarity_matrix
from ..analysis.layers import LayerReport, analyse, layer_pairs
from ..errors import UserError
from ..files import write_text
from ..tasks.classification.classifier import ImageClassifier
from ..viz.inspection import write_inspection
from .tables import print_table

GRID = [step / 20 for step in range(1, 21)]
SHOWN = 32  # vectors in the similarity matrix


def inspect_artefact(folder: Path, top_k: int, epsilon: float, out: Path | None, json_path: Path | None) -> None:
    """Print the table, write the page and, if asked, the numbers.

    Raises:
        UserError: not an artefact, without an adapter, or one whose change is no ΔW.
    """
    model = ImageClassifier.load(folder).model
    if not hasattr(model, "peft_config"):
        raise UserError(f"{folder}: has no adapter to inspect: only its head was trained.")
    reports = list(analyse(layer_pairs(model), top_k, epsilon))
    rows = [_row(report) for report in reports]
    method = str(getattr(model.peft_type, "value", model.peft_type)).lower()
    summary = {"backbone": model.name, "method": method, "k": top_k, "epsilon": epsilon, **_totals(reports)}
    print_table(_table(rows, summary))
    page = folder / "inspect.html" if out is None else out
    print(_write_page(page, str(folder), summary | {"layers": rows}, reports))
    if json_path:
        write_text(json_path, json.dumps(summary | {"layers": rows}, indent=1) + "\n")


def _row(report: LayerReport) -> dict[str, Any]:
    found = report.found
    return {
        "name": report.name,
        "kind": report.kind,
        "shape": report.shape,
        "relative_norm": report.relative_norm,
        "effective_rank": report.effective_rank,
        "intruders": found.count,
        "indices": found.indices.tolist(),
        "similarities": found.similarities.tolist(),
        "energy_share": found.energy_share,
    }


def _totals(reports: Sequence[LayerReport]) -> dict[str, Any]:
    norms = [report.relative_norm for report in reports]
    return {
        "total": sum(report.found.count for report in reports),
        "slots": sum(len(report.found.values) for report in reports),
        "touched": sum(report.found.count > 0 for report in reports),
        "median_norm": median(norms),
        "largest_norm": max(norms),
        "median_rank": median(report.effective_rank for report in reports),
    }


def _table(rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> Table:
    title = f"{summary['method']} on {summary['backbone']}: {summary['total']} intruders of {summary['slots']} vectors"
    table = Table(title=title, show_footer=True)
    table.add_column("layer", overflow="fold", footer="medians, total")
    table.add_column("kind")
    footers = (f"{summary['median_norm']:.3g}", f"{summary['median_rank']:.2f}", str(summary["total"]))
    for name, footer in zip(("‖ΔW‖/‖W‖", "effective rank", "intruders"), footers, strict=True):
        table.add_column(name, justify="right", footer=footer)
    for row in rows:
        numbers = (f"{row['relative_norm']:.3g}", f"{row['effective_rank']:.2f}", str(row["intruders"]))
        table.add_row(row["name"], row["kind"], *numbers)
    return table


def _write_page(path: Path, name: str, summary: dict[str, Any], reports: Sequence[LayerReport]) -> Path:
    shown = max(reports, key=lambda report: (report.found.count, report.relative_norm))
    spectra = shown.spectra
    widest = max(report.shape[0] for report in reports)
    return write_inspection(
        path,
        summary | {"name": name, "shown": shown.name, "chance": random_similarity(widest)},
        _curves(reports, summary["k"]),
        (spectra.base_values.tolist(), spectra.values.tolist(), shown.found.indices.tolist()),
        similarity_matrix(spectra, SHOWN).tolist(),
    )


def _curves(reports: Sequence[LayerReport], k: int) -> dict[str, list[tuple[float, float]]]:
    """Intruders of all layers of a kind against ε."""
    sums: dict[str, list[float]] = {}
    for report in reports:
        own = count_grid(report.similarities, [k], GRID)[0].tolist()
        sums[report.kind] = [a + b for a, b in zip(sums.get(report.kind, [0] * len(GRID)), own, strict=True)]
    return {kind: list(zip(GRID, counts, strict=True)) for kind, counts in sums.items()}
