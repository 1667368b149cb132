"""The section "Manipulation": whether, where and by which signs pictures were found to be edited.

It shows metrics ``test/SET/NAME`` (their definitions: :mod:`vision_lowrank.metrics`), those of slices
(``test/SET/editor/NAME/recall``), of constants that a detector must beat (``test/SET/full_box/…``) and of degraded
pictures (``test/SET/jpeg-70/auc``); layers, contrast and calibration from ``facts.manipulation`` of every seed; and::

    seed-N/details.json     intervals and slices of every set
    seed-N/pictures.csv     label and probability of every picture, for reliability before and after calibration
    seed-N/gallery.json     groups of pictures with what was found in them, each chosen by the rule it states

A file that is missing leaves its part out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup

from ...registry import register
from ..reading import read_checked
from . import manipulation_plots as plots
from .base import ReportSection, Row
from .manipulation_reading import Contrast, Details, DetectorFacts, Group, Layers, ManipulationFacts, SetDetails
from .manipulation_reliability import calibration_error, read_pictures, reliability, uncalibrated

ROWS = {
    "Was it edited?": {
        "auc": "AUC",
        "balanced_accuracy": "balanced accuracy",
        "recall": "edited pictures recognised",
        "false_alarm_rate": "real pictures called edited",
        "ece": "calibration error (ECE)",
    },
    "Where?": {
        "pixel_f1": "pixel F1 on edited pictures",
        "pixel_iou": "pixel IoU on edited pictures",
        "pixel_false_localisation": "real pictures with a marked pixel",
        "box_union_iou": "IoU of all boxes together",
        "box_ap50": "box AP at IoU 0.5",
        "box_ap": "box AP, mean of IoU 0.5 to 0.95",
        "box_false_localisation": "real pictures with a box",
    },
    "Which signs?": {
        "cue_micro_f1": "signs, micro F1",
        "cue_macro_f1": "signs, macro F1",
    },
}
CONSTANTS = {"constant_box": "mean training box", "full_box": "whole picture", "most_frequent": "most frequent sign"}
CHANCE = ("auc", "balanced_accuracy")
DEGRADED = re.compile(r"test/([^/]+)/([a-z_]+)-(\d+(?:\.\d+)?)/(auc|pixel_f1)")
GROWING = ("gaussian_blur", "gaussian_noise")  # a higher level is a stronger degradation; of all others a lower one
CURVES = {"auc": "AUC", "pixel_f1": "pixel F1"}
SETS = 6  # reliability plots
THUMBNAILS = 24


@dataclass(frozen=True)
class DetectionRow(Row):
    """A metric with its bootstrap interval and what answers that ignore the picture would score."""

    interval: tuple[float, float] | None = None
    constants: Sequence[tuple[str, float | None]] = ()


@register(
    "report", "manipulation", summary="whether, where and by which signs; layer, calibration, robustness, examples"
)
class ManipulationSection(ReportSection[ManipulationFacts]):
    """Tables by test set instead of the general first table; without a detector's facts, the general report."""

    template = "manipulation.html.jinja"
    facts_model = ManipulationFacts

    @cached_property
    def first_table(self) -> list[Row]:
        """None: the section has tables of its own."""
        return [] if self._facts else super().first_table

    @property
    def lead(self) -> Row | None:
        """Balanced accuracy on the first test set."""
        named = {row.name: row for row in self.rows}
        found = (row for name in _sets(named) if (row := named.get(f"test/{name}/balanced_accuracy")))
        return next(found, None) if self._facts else super().lead

    @cached_property
    def _facts(self) -> dict[str, DetectorFacts]:
        """Seed -> the facts of its detector."""
        return {seed: each.manipulation for seed, each in self.run.facts.items() if each.manipulation}

    def context(self) -> dict[str, Any]:
        """Return ``manipulation``: what the section shows; None where no seed has such facts."""
        facts = self._facts
        if not facts:
            return {"manipulation": None}
        folders = {seed: self.run.path / f"seed-{seed}" for seed in facts}
        found = [read_checked(folder / "details.json", Details) or Details() for folder in folders.values()]
        named = {row.name: row for row in self.rows}
        sets = _sets(named)
        pictures = {seed: read_pictures(folder / "pictures.csv") for seed, folder in folders.items()}
        galleries = (
            (seed, groups)
            for seed, folder in folders.items()
            if (groups := read_checked(folder / "gallery.json", list[Group]))
        )
        shown = {
            "sets": [_scores(name, named, [each.sets.get(f"test/{name}") for each in found]) for name in sets],
            "slices": [
                table
                for name in sets
                for kind in ("editor", "category")
                if (table := _slices(f"test/{name}", kind, named, found[0].sets.get(f"test/{name}")))
            ],
            "layers": _layers(facts),
            "contrast": _contrast(list(facts.values())),
            "calibration": _calibration(sets, named, facts, pictures),
            "robustness": _robustness(named),
            "gallery": _gallery(next(galleries, None)),
        }
        return {"manipulation": shown}


def _sets(named: Mapping[str, Row]) -> list[str]:
    """Return the names of the test sets."""
    return list(dict.fromkeys(name.split("/")[1] for name in named if name.startswith("test/")))


def _scores(name: str, named: Mapping[str, Row], details: Sequence[SetDetails | None]) -> dict[str, Any]:
    """Return the table of one test set.

    An interval reaches from the lowest lower to the highest upper end of all seeds.
    """
    groups = []
    for heading, labels in ROWS.items():
        lines = []
        for metric, label in labels.items():
            if row := named.get(f"test/{name}/{metric}"):
                ends = [each.intervals[metric] for each in details if each and metric in each.intervals]
                known = [end for end in ends if end.low is not None and end.high is not None]
                interval = (min(end.low for end in known), max(end.high for end in known)) if known else None
                constants = _constants(name, metric, named)
                lines.append(DetectionRow(**vars(row) | {"label": label}, interval=interval, constants=constants))
        if lines:
            groups.append((heading, lines))
    return {"name": name, "groups": groups}


def _constants(name: str, metric: str, named: Mapping[str, Row]) -> list[tuple[str, float | None]]:
    """Return what an answer that ignores the picture would score."""
    if metric in CHANCE:
        return [("chance", 0.5)]
    found = [(label, named.get(f"test/{name}/{constant}/{metric}")) for constant, label in CONSTANTS.items()]
    return [(label, row.after.mean) for label, row in found if row]


def _slices(prefix: str, kind: str, named: Mapping[str, Row], details: SetDetails | None) -> dict[str, Any] | None:
    """Return recall and AUC of every editor or category, the hardest first."""
    start, end = f"{prefix}/{kind}/", "/recall"
    names = [name[len(start) : -len(end)] for name in named if name.startswith(start) and name.endswith(end)]
    known = details.slices.get(kind, {}) if details else {}
    rows = [
        {
            "name": name,
            "recall": named[f"{start}{name}{end}"],
            "auc": named.get(f"{start}{name}/auc"),
            "about": known.get(name),
        }
        for name in names
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: (row["recall"].after.mean is not None, row["recall"].after.mean, row["name"]))
    return {"set": prefix.removeprefix("test/"), "kind": kind, "rows": rows}


def _layers(facts: Mapping[str, DetectorFacts]) -> dict[str, Any]:
    """Return table and plots of the first seed that chose a layer, and the layer of each seed."""
    seed, layers = next(((seed, each.layers) for seed, each in facts.items() if each.layers.table), (None, None))
    chosen = {seed: each.layers.chosen for seed, each in facts.items()}
    found = {"chosen": chosen, "of": next(iter(facts.values())).layers.of}
    if layers is None:
        return found
    return found | {"seed": seed, "criterion": layers.criterion, "table": layers.table, "plots": _layer_plots(layers)}


def _layer_plots(layers: Layers) -> list[Markup]:
    """Plot the three terms as z-scores over layers beside their sum, and the probe."""
    numbers = [row.layer for row in layers.table]
    columns = {
        name: [getattr(row, name) for row in layers.table] for name in ("kl", "ldr", "entropy", "score", "probe")
    }
    known = {name: np.array(values) for name, values in columns.items() if None not in values}
    figures = []
    if {"kl", "ldr", "entropy", "score"} <= known.keys():
        terms = {"KL": _zscore(known["kl"]), "LDR": _zscore(known["ldr"]), "−entropy": -_zscore(known["entropy"])}
        lines = {name: list(zip(numbers, values, strict=True)) for name, values in terms.items()}
        lines["score, their sum"] = list(zip(numbers, known["score"], strict=True))
        figures.append(Markup(plots.layer_terms(lines, layers.chosen, "terms as z-scores over layers")))
    if "probe" in known:
        line = {"probe": list(zip(numbers, known["probe"], strict=True))}
        figures.append(Markup(plots.layer_terms(line, layers.chosen, "AUC of a linear probe", percent=True)))
    return figures


def _zscore(values: np.ndarray) -> np.ndarray:
    spread = values.std()
    return (values - values.mean()) / spread if spread else np.zeros(len(values))


def _contrast(facts: Sequence[DetectorFacts]) -> list[tuple[str, float | None, float | None]]:
    """Return (label, before, after), means over seeds, of what stage A changed."""
    runs = [each.contrast for each in facts if each.contrast]
    if not runs:
        return []

    def mean(when: str, name: str) -> float | None:
        values = [getattr(run.get(when, Contrast()), name) for run in runs]
        return None if None in values else fmean(values)

    labels = {"twin_cosine": "cosine of a picture and its edit", "probe_auc": "AUC of a linear probe"}
    return [(label, mean("before", name), mean("after", name)) for name, label in labels.items()]


def _calibration(
    sets: Sequence[str],
    named: Mapping[str, Row],
    facts: Mapping[str, DetectorFacts],
    pictures: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
) -> dict[str, Any]:
    """Return thresholds of every seed, ECE before (T = 1) and after, and reliability of the first seed.

    The ECEs are means over seeds.
    """
    errors, figures = [], []
    for name in sets:
        key = f"test/{name}"
        own = [(*pictures[seed][key], facts[seed].calibration) for seed in facts if key in pictures[seed]]
        if not own:
            continue
        before = fmean(calibration_error(uncalibrated(p, each.temperature), y) for p, y, each in own)
        after = fmean(calibration_error(p, y) for p, y, _ in own)
        row = named.get(f"{key}/ece")
        errors.append((name, before, row.after.mean if row else after))
        figures.append(Markup(plots.reliability(reliability(*own[0][:2]), f"edited share, {name}")))
    return {
        "seeds": {seed: each.calibration for seed, each in facts.items()},
        "errors": errors,
        "plots": figures[:SETS],
    }


def _robustness(named: Mapping[str, Row]) -> list[Markup]:
    """Draw a plot per kind of degradation, from the clean pictures to the strongest level."""
    found: dict[str, dict[float, dict[tuple[str, str], Any]]] = {}
    for name, row in named.items():
        if match := DEGRADED.fullmatch(name):
            set_name, kind, level, metric = match.groups()
            found.setdefault(kind, {}).setdefault(float(level), {})[CURVES[metric], set_name] = row.after
    figures = []
    for kind, levels in found.items():
        order = sorted(levels, reverse=kind not in GROWING)
        keys = dict.fromkeys(key for level in order for key in levels[level])
        metrics = {label: metric for metric, label in CURVES.items()}
        clean = {key: row.after for key in keys if (row := named.get(f"test/{key[1]}/{metrics[key[0]]}"))}
        scores = {key: [clean.get(key), *(levels[level].get(key) for level in order)] for key in keys}
        lines = {
            key: [(s.mean, s.std or 0.0) if s is not None and s.mean is not None else None for s in values]
            for key, values in sorted(scores.items())
        }
        title = kind.replace("_", " ")
        figures.append(Markup(plots.robustness(lines, ["clean", *(f"{level:g}" for level in order)], title)))
    return figures


def _gallery(found: tuple[str, list[Group]] | None) -> dict[str, Any] | None:
    """Return the first seed's pictures, at most 24."""
    if found is None:
        return None
    seed, groups = found
    left, kept = THUMBNAILS, []
    for group in groups:
        kept.append(group.model_copy(update={"pictures": group.pictures[:left]}))
        left -= len(kept[-1].pictures)
    return {"seed": seed, "groups": [group for group in kept if group.pictures]}
