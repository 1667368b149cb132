"""Section of trackers: success and precision plots, attributes, and strips of the best, middle and worst clips.

It shows, beside the general tables, from the folder of every seed::

    details.json    sets: test set -> thresholds, curves, metrics, sequences and attributes
    gallery.json    groups of clips with a strip of frames each

A file that is missing leaves its part out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from pydantic import Field

from ...registry import register
from ..plots import MARKERS, SERIES, SETTINGS, _decorate, _figure, _short, _svg
from ..reading import Checked, Facts, Number, Picture, read_checked
from .base import ReportSection

# curve -> title of its plot, what its axis is
CURVES = {
    "success": ("success", "overlap that a frame must exceed"),
    "precision": ("precision", "error of the middle in pixels"),
    "normalized_precision": ("normalised precision", "error of the middle in sides of the target"),
}


class SetScores(Checked):
    """Scores of a test set."""

    convention: str = ""
    thresholds: dict[str, list[float]] = Field(default_factory=dict)
    curves: dict[str, list[Number]] = Field(default_factory=dict)
    sequences: dict[str, dict[str, Any]] = Field(default_factory=dict)
    attributes: dict[str, dict[str, Number]] = Field(default_factory=dict)


class Details(Checked):
    """``details.json``."""

    sets: dict[str, SetScores] = Field(default_factory=dict)


class ClipStrip(Checked):
    """A clip with a strip of its frames."""

    name: str
    success: Number
    image: Picture = ""


class ClipGroup(Checked):
    """Clips by one rule."""

    title: str
    set: str
    clips: list[ClipStrip] = Field(default_factory=list)


@register("report", "tracking", summary="success and precision plots, attributes, strips of clips")
class TrackingSection(ReportSection[Facts]):
    """Plots, attributes and strips."""

    template = "tracking.html.jinja"
    labels: ClassVar = {
        "success_auc": "success (AUC)",
        "normalized_precision": "normalised precision at 0.2",
        "precision": "precision at 20 px",
        "op50": "overlap above 0.5",
        "op75": "overlap above 0.75",
    }

    def context(self) -> dict[str, Any]:
        """Return ``threshold_plots`` (markup), ``attributes``, ``convention``, ``spread`` and ``groups``."""
        found = {seed: read_checked(folder / "details.json", Details) for seed, folder in self.run.seeds.items()}
        known = {seed: details for seed, details in found.items() if details}
        first = next(iter(known.values()), Details())
        galleries = [read_checked(folder / "gallery.json", list[ClipGroup]) for folder in self.run.seeds.values()]
        name = next(iter(first.sets), "")
        scores = first.sets.get(name, SetScores())
        return {
            "threshold_plots": [Markup(plot) for plot in _curves(first.sets)],
            "convention": scores.convention,
            "set": name,
            "attributes": sorted(scores.attributes.items()),
            "spread": _spread(scores),
            "groups": next((groups for groups in galleries if groups), []),
        }


def _curves(sets: Mapping[str, SetScores]) -> list[str]:
    """Plot each curve of all test sets, of the first seed."""
    plots = []
    for curve, (title, axis) in CURVES.items():
        found = {name: (each.thresholds.get(curve, []), each.curves.get(curve, [])) for name, each in sets.items()}
        lines = {name: pair for name, pair in found.items() if pair[0] and len(pair[0]) == len(pair[1])}
        if lines:
            plots.append(threshold_curves(lines, title, axis))
    return plots


def threshold_curves(lines: Mapping[str, tuple[list[float], list[float | None]]], title: str, axis: str) -> str:
    """Plot the share of frames that are good enough against what enough is, a line per test set.

    Args:
        lines: test set -> thresholds and shares.
        title: written above the plot.
        axis: what the thresholds are.
    """
    with mpl.rc_context(SETTINGS):
        figure, axes = _figure(310, 250, (44, 8, 30, 74))
        for index, (name, (thresholds, shares)) in enumerate(lines.items()):
            values = np.array([np.nan if share is None else share for share in shares])
            every = max(1, len(thresholds) // 6)
            axes.plot(
                thresholds, values, lw=2, ms=4, color=SERIES[index % len(SERIES)], marker=MARKERS[index % 8],
                markevery=every, label=_short(name),
            )  # fmt: skip
        axes.set_ylim(0, 1.02)
        _decorate(axes, title, axis, percent=True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False, fontsize=9, ncols=2)
        return _svg(figure, title)


def _spread(scores: SetScores) -> list[Number]:
    """Return success of the 10th, 50th and 90th per cent of clips; nothing where there are none."""
    values = [each.get("metrics", {}).get("success_auc") for each in scores.sequences.values()]
    numbers = [value for value in values if isinstance(value, float)]
    return np.percentile(numbers, [10, 50, 90]).tolist() if numbers else []
