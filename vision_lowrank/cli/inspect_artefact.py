"""``vision-lowrank inspect ARTEFACT``: what training did to the weights, layer by layer, and with ``--evaluate`` to
what the model can do (:mod:`.inspect_evaluate`).

The numbers, as ``--json`` writes them::

    backbone, method, k, epsilon
    layers, total, slots, …             or `refused`: why there is no ΔW to look at
    forgetting                          before, after, lost: set/metric -> value; which metric is the headline
    mitigation                          rows along λ, or `refused`
    separation                          frozen and adapted: pictures -> measure -> value, or `refused`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..analysis.intruders import count_grid, random_similarity, similarity_matrix
from ..analysis.layers import LayerPair, LayerReport, analyse, layer_pairs
from ..analysis.trained_base import trained_pairs
from ..backbones.adapted import adapted
from ..backbones.load import load_backbone
from ..backbones.weights import NEVER_TRAINED, RANDOM
from ..errors import UserError
from ..files import write_text
from ..tasks.about import read_about
from ..tasks.saved import AdaptedModel, load_model
from ..viz.inspection import LayerPlots, write_inspection
from .checks import recorded_config
from .inspect_evaluate import Evaluation, evaluation_of, forgotten, mitigated, separated
from .inspect_tables import tables
from .tables import print_table

GRID = [step / 20 for step in range(1, 21)]
SHOWN = 32  # vectors in the similarity matrix


def inspect_artefact(
    folder: Path,
    top_k: int,
    epsilon: float,
    out: Path | None,
    json_path: Path | None,
    overrides: list[str] | None = None,
    trust: bool = False,
) -> None:
    """Print the tables, write the page and, if asked, the numbers.

    Args:
        folder: the artefact.
        top_k: leading singular vectors per layer.
        epsilon: similarity below which one is an intruder.
        out: the page; None for one inside `folder`.
        json_path: takes the numbers.
        overrides: settings of the data to evaluate on; None for weights only.
        trust: as for ``load_model``.

    Raises:
        UserError: not an artefact; without `overrides` one whose change is no ΔW, with them one without data.
    """
    model, spec = load_model(folder, attach=True, trust=trust), read_about(folder)["backbone"]
    lost = bool(model.trained_base) and spec["weights"] == RANDOM
    if lost and overrides is not None:
        raise UserError(f"{folder}: was trained from random weights, which forgot nothing: use `vision-lowrank eval`.")
    base = load_backbone(**spec) if model.trained_base and not lost else None
    run = None
    if overrides is not None:  # what is wrong with the data is said before anything is computed
        run = evaluation_of(model, recorded_config(folder, overrides), base, folder)
    numbers: dict[str, Any] = {"backbone": model.backbone.name, "method": _method(model)}
    numbers |= {"k": top_k, "epsilon": epsilon}
    reports: list[LayerReport] = []
    try:
        reports = list(analyse(_pairs(folder, model, base, lost), top_k, epsilon))
        if not reports:
            raise UserError(f"{folder}: its adapter sits on no matrix that could be compared.")
        numbers |= _totals(reports) | {"layers": [_row(report) for report in reports]}
    except UserError as error:
        if run is None:
            raise
        numbers["refused"] = str(error)
    if run is not None:
        run.to_device()
        numbers["forgetting"] = forgotten(run)
        numbers["mitigation"] = _or_reason(lambda: _mitigation(run, numbers))
        numbers["separation"] = _or_reason(lambda: separated(run))
    if spec["weights"] == RANDOM:
        print(f"{model.backbone.name}: {NEVER_TRAINED}")
    for table in tables(numbers):
        if isinstance(table, str):
            print(table)
        else:
            print_table(table)
    page = folder / "inspect.html" if out is None else out
    print(write_inspection(page, numbers | {"name": str(folder)}, _plots(reports, top_k)))
    if json_path:
        write_text(json_path, json.dumps(numbers, indent=1) + "\n")


def _pairs(folder: Path, model: AdaptedModel, base: Any, lost: bool) -> Iterator[LayerPair]:
    """Return (W0, ΔW) of what was trained; `base` is what the weights were before, unless that is `lost`."""
    if adapted(model.backbone):
        return layer_pairs(model.backbone)
    if base is not None:
        return trained_pairs(base, model.backbone)
    if lost:
        raise UserError(
            f"{folder}: was trained from random weights, so there is no base that ΔW could be a change of; "
            "`vision-lowrank eval` says what it can do."
        )
    raise UserError(
        f"{folder}: has no adapter to inspect: at most its head was trained; `vision-lowrank eval` says what it can do."
    )


def _method(model: AdaptedModel) -> str:
    if adapted(model.backbone):
        return str(getattr(model.backbone.peft_type, "value", model.backbone.peft_type)).lower()
    rule = model.record.get("config", {}).get("rule") or {}
    return rule.get("type", "full fine-tuning") if model.trained_base else "a head alone"


def _mitigation(run: Evaluation, numbers: Mapping[str, Any]) -> dict[str, Any]:
    if "refused" in numbers:
        raise UserError(numbers["refused"])
    if run.base is not None:
        raise UserError("the base weights themselves were trained: there is no adapter whose ΔW could be scaled.")
    if not numbers["total"]:
        raise UserError(f"no vector counts as an intruder at ε = {numbers['epsilon']:g}: there is nothing to scale.")
    return mitigated(run, numbers["k"], numbers["epsilon"])


def _or_reason(section: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a section, or why there is none."""
    try:
        return section()
    except UserError as error:
        return {"refused": str(error)}


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


def _plots(reports: Sequence[LayerReport], k: int) -> LayerPlots | None:
    if not reports:
        return None
    shown = max(reports, key=lambda report: (report.found.count, report.relative_norm))
    spectra = shown.spectra
    return LayerPlots(
        counts=_curves(reports, k),
        shown=shown.name,
        spectrum=(spectra.base_values.tolist(), spectra.values.tolist(), shown.found.indices.tolist()),
        similarity=similarity_matrix(spectra, SHOWN).tolist(),
        chance=random_similarity(max(report.shape[0] for report in reports)),
    )


def _curves(reports: Sequence[LayerReport], k: int) -> dict[str, list[tuple[float, float]]]:
    """Count the intruders of all layers of a kind against ε."""
    sums: dict[str, list[float]] = {}
    for report in reports:
        own = count_grid(report.similarities, [k], GRID)[0].tolist()
        sums[report.kind] = [a + b for a, b in zip(sums.get(report.kind, [0] * len(GRID)), own, strict=True)]
    return {kind: list(zip(GRID, counts, strict=True)) for kind, counts in sums.items()}
