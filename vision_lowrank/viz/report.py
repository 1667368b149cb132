"""The HTML report of a run: one self-contained file that a stranger understands.

:func:`write_report` reads what the engine wrote into a run folder and nothing else::

    result.json               scores, facts, cost, coverage (absent while the run goes on)
    config.yaml               the resolved settings
    seed-N/metrics.jsonl      one line per logged step or evaluation
    seed-N/…                  what the task adds, which its section reads (:mod:`.sections`)

A part whose source is missing is left out. Names, keys and settings come from users: the template escapes them all,
pictures are accepted as data URIs only, and the page's own content policy forbids every request and every script.
"""

from __future__ import annotations

import inspect
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import yaml
from markupsafe import Markup

from ..config.yaml_text import parse_yaml
from ..errors import ArtefactError, UserError
from ..files import write_text
from ..metrics.names import is_share, sign
from ..registry import registry
from . import plots
from .pages import template
from .reading import Cost, Result, Score, TaskName, read_checked
from .sections.base import ReportSection, Row, RunFolder

KINDS = {"test": "Test sets", "retention": "What the model could do before", "val": "Validation", "": "Other"}


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder.

    Args:
        run: a finished or unfinished run folder.

    Returns:
        The report's path.

    Raises:
        ArtefactError: not a run folder, or one of its files is damaged.
    """
    run = Path(run)
    folders = sorted((f for f in run.glob("seed-*") if f.is_dir()), key=lambda f: (len(f.name), f.name))
    if not folders and not any((run / name).is_file() for name in ("result.json", "config.yaml")):
        raise ArtefactError(f"{run}: no run here (neither result.json nor config.yaml): give the folder of a run.")
    seeds = {folder.name.removeprefix("seed-"): folder for folder in folders}
    kind = _section_of(run)
    result: Result | None = read_checked(run / "result.json", Result[kind.facts_model])
    section = kind(RunFolder(run, seeds, result, _rows(result, kind.labels) if result else []))
    context = _page(run, seeds, result, kind.labels) | _tables(section) | section.context()
    page = template(kind.template, Path(inspect.getfile(kind)).parent).render(context)
    path = run / "report.html"
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))  # names of files may hold lone surrogates
    return path


def _section_of(run: Path) -> type[ReportSection]:
    """Return the section of the run's task, which its result names or, while it goes on, its config."""
    named = read_checked(run / "result.json", TaskName)
    task = named.task if named else str(_part(_config(run / "config.yaml"), "task").get("type"))
    try:
        return registry.get("report", task).target
    except UserError:  # it has none
        return ReportSection


def _config(path: Path) -> dict[str, Any]:
    """Read the config as far as it can be read."""
    try:
        found = parse_yaml(_text(path))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a part of a config that has options of its own; empty where there is none."""
    return found if isinstance(found := config.get(name), dict) else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _page(run: Path, seeds: Mapping[str, Path], result: Result | None, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page of every task shows beside its tables."""
    logs = {seed: _read_log(folder / "metrics.jsonl") for seed, folder in seeds.items()}
    config = _text(run / "config.yaml")
    if not config and result and result.config:
        config = yaml.safe_dump(result.config, sort_keys=False, allow_unicode=True)
    place = _trained_at(run, result)
    artefacts = [(place / f.name / "artefact").as_posix() for f in seeds.values() if (f / "artefact").is_dir()]
    return {
        "KINDS": KINDS,
        "name": result.name if result else run.resolve().name,
        "result": result,
        "config_text": config,
        "seed_count": len(seeds),
        "curves": _curves(logs, result.selects_by if result else "", labels),
        "artefact": next(iter(artefacts), None),
        **(_facts(result) if result else {}),
    }


def _trained_at(run: Path, result: Result | None) -> Path:
    """Return the run folder as it was called where it was trained: below the config's ``out``, where that fits."""
    name = run.resolve().name
    out = result.config.get("out") if result else None
    return Path(out) / name if isinstance(out, str) and result and result.config.get("name") == name else Path(name)


def _tables(section: ReportSection) -> dict[str, Any]:
    """Return rows of the first table and of the folded ones; those that the sentences at the top are about."""
    first = section.first_table
    return {
        "first_table": first,
        "others": [row for row in section.rows if row not in first],
        "lead": section.lead,
        "kept": next((row for row in first if row.kind == "retention"), None),
    }


def _read_log(path: Path) -> list[dict[str, Any]]:
    """Read the readable lines of ``metrics.jsonl``: a killed run may leave half a line, a resumed one goes on after."""
    entries = []
    for line in _text(path).splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries


def _curves(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], selects_by: str, labels: Mapping[str, str]
) -> list[Markup]:
    """Plot loss, a validation metric and learning rate over all stages, one after the other."""
    lengths: dict[str, int] = {}
    for entry in itertools.chain.from_iterable(logs.values()):
        stage = str(entry.get("stage"))
        lengths[stage] = max(lengths.get(stage, 0), entry["step"])
    starts = dict(zip(lengths, itertools.accumulate(lengths.values(), initial=0), strict=False))
    names = {
        name for entry in itertools.chain.from_iterable(logs.values()) for name in entry if name.startswith("val/")
    }
    val = min(names, key=lambda name: (name != selects_by, name == "val/loss", name), default="val/")
    titles = {"loss": "training loss", val: f"validation {_label(val[4:], labels)}", "lr": "learning rate"}
    figures = []
    for name, title in titles.items():
        runs = {seed: points for seed, log in logs.items() if (points := _series(log, name, starts))}
        if runs:
            later = [start for start in starts.values() if start]
            figures.append(Markup(plots.learning_curves(runs, title, percent=is_share(name), boundaries=later)))
    return figures


def _series(log: Sequence[Mapping[str, Any]], name: str, starts: Mapping[str, int]) -> list[tuple[float, float]]:
    """Return (step, value) of one logged quantity; where a resumed run logged a step again, the later line counts."""
    values = {
        starts[str(entry.get("stage"))] + entry["step"]: entry[name]
        for entry in log
        if isinstance(entry.get(name), (int, float)) and math.isfinite(entry[name])
    }
    return sorted(values.items())


def _rows(result: Result, labels: Mapping[str, str]) -> list[Row]:
    """Make a row of every metric, in the order of the kinds of sets."""
    return sorted((_row(name, result, labels) for name in result.metrics), key=lambda row: list(KINDS).index(row.kind))


def _row(name: str, result: Result, labels: Mapping[str, str]) -> Row:
    """Compare one metric before and after: ``test/fluent/loss`` is the loss on ``fluent``, a set of kind ``test``."""
    group, _, metric = name.rpartition("/")
    kind, _, set_name = group.partition("/")
    pairs = {seed: (one.baseline.get(name), one.metrics.get(name)) for seed, one in result.seeds.items()}
    changes = [new - old for old, new in pairs.values() if old is not None and new is not None]
    return Row(
        name=name,
        kind=kind if kind in KINDS else "",
        set=set_name or group or name,
        metric=metric,
        label=_label(metric, labels),
        fraction=is_share(name),
        sign=sign(name),
        before=result.baseline.get(name),
        after=result.metrics[name],
        change=Score(mean=fmean(changes), std=pstdev(changes), n=len(changes)) if changes else None,
        pairs=pairs,
    )


def _label(metric: str, labels: Mapping[str, str]) -> str:
    return labels.get(metric, metric.replace("_", " "))


def _facts(result: Result) -> dict[str, Any]:
    """Return what was adapted, on what, at which cost.

    Costs are means over seeds, the other facts are the first seed's.
    """
    seeds = list(result.seeds.values())
    planned = result.config.get("seeds")
    costs = {name: [getattr(seed.cost, name) for seed in seeds] for name in Cost.model_fields}
    return {
        "facts": seeds[0].facts,
        "sections": {name: _part(result.config, name) for name in result.config},
        "trained": seeds[0].facts.trainable_parameters != 0,
        "planned": len(planned) if isinstance(planned, list) else len(seeds),
        "cost": {name: fmean(values) for name, values in costs.items() if None not in values},
        "coverage": seeds[0].coverage.rows if seeds[0].coverage else [],
    }
