"""The HTML page of ``vision-lowrank inspect`` on a trained artefact: one self-contained file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from ..files import write_text
from . import plots
from .pages import template

SCALED = {"intruders": "intruders scaled", "shrunk": "ΔW shrunk as much", "random": "random ones scaled"}
MEASURES = {
    "fisher": "Fisher ratio",
    "silhouette": "silhouette",
    "margin": "margin",
    "knn": "k-NN",
    "probe": "linear probe",
}


@dataclass(frozen=True)
class LayerPlots:
    """What is drawn of the layers.

    Attributes:
        counts: kind of layer -> (threshold, number of intruders).
        shown: name of the layer that the others are of.
        spectrum: its singular values, frozen and tuned, and the indices of its intruders.
        similarity: (m, m) cosines.
        chance: what a random direction scores in the widest layer.
    """

    counts: Mapping[str, plots.Points]
    shown: str
    spectrum: tuple[Sequence[float], Sequence[float], Sequence[int]]
    similarity: Sequence[Sequence[float]]
    chance: float


def write_inspection(path: Path, numbers: Mapping[str, Any], layers: LayerPlots | None) -> Path:
    """Write the page; a section that `numbers` does not have is left out.

    Args:
        path: the file.
        numbers: as ``inspect --json`` writes them (``cli/inspect_artefact.py``), and ``name``.
        layers: None where there is no ΔW to look at; then ``numbers["refused"]`` is the reason.

    Returns:
        `path`.
    """
    context = {**numbers, "scaled": SCALED, "measures": MEASURES}
    if layers is not None:
        context |= {
            "shown": layers.shown,
            "chance": layers.chance,
            "counts": Markup(plots.intruder_counts(layers.counts)),
            "spectrum": Markup(plots.spectrum(*layers.spectrum, "singular values")),
            "similarity": Markup(plots.similarity(layers.similarity, "cosines")),
        }
    if "rows" in numbers.get("mitigation", {}):
        context["curves"] = _curves(numbers["mitigation"], numbers["forgetting"])
    write_text(path, template("inspection.html.jinja").render(context))
    return path


def _curves(section: Mapping[str, Any], forgetting: Mapping[str, Any]) -> list[Markup]:
    """Draw the task's headline along λ and, where there are such sets, that of what is recognised by prompts."""
    frozen = {"task": None, "kept": _mean(forgetting, section["kept_sets"])}
    titles = {"task": "the task: validation pictures", "kept": "what is kept: other sets"}
    figures = []
    for part, title in titles.items():
        lines = {
            label: [(row["keep"], row[name][part]) for row in section["rows"] if row[name][part] is not None]
            for name, label in SCALED.items()
        }
        if any(lines.values()):
            figures.append(Markup(plots.accuracy_along(lines, title, baseline=frozen[part])))
    return figures


def _mean(forgetting: Mapping[str, Any], sets: Sequence[str]) -> float | None:
    names, before = [f"{name}/{forgetting['headline']}" for name in sets], forgetting["before"]
    values = [before[name] for name in names if name in before]
    return fmean(values) if values else None
