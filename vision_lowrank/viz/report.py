"""The HTML report of a run: one self-contained file that a stranger understands.

:func:`write_report` reads what the engine wrote into a run folder and nothing else::

    result.json               scores, facts, cost, coverage, confusion matrices (absent while the run goes on)
    config.yaml               the resolved settings
    seed-N/metrics.jsonl      one line per logged step or evaluation
    seed-N/mistakes.json      the worst mistakes with small pictures
    seed-N/details.json …     of a manipulation task; see :mod:`.sections.manipulation`

A section whose source is missing is left out. Names, keys and settings come from users: the template escapes them all,
pictures are accepted as data URIs only, and the page's own content policy forbids every request and every script.
"""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import yaml
from jinja2 import ChainableUndefined, Environment, PackageLoader, Template
from markupsafe import Markup

from ..errors import ArtefactError
from ..files import write_text
from ..metrics.names import is_share, sign
from . import plots
from .reading import Cost, Mistake, Result, Score, read_checked
from .sections.incremental import PREFIXES, session_section
from .sections.manipulation import manipulation_section

MATRIX_LIMIT = 60  # classes; a larger confusion matrix is unreadable, its worst pairs are listed instead
MISTAKES = 24
LISTED = 60  # metrics of the first table; more are folded
KINDS = {"test": "Test sets", "retention": "What the model could do before", "val": "Validation", "": "Other"}
METRIC_LABELS = {
    "accuracy": "accuracy",
    "class_accuracy": "accuracy, mean over classes",
    "top5": "top-5 accuracy",
    "loss": "loss",
}


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
    result = read_checked(run / "result.json", Result)
    folders = sorted((f for f in run.glob("seed-*") if f.is_dir()), key=lambda f: (len(f.name), f.name))
    if result is None and not folders and not (run / "config.yaml").is_file():
        raise ArtefactError(f"{run}: no run here (neither result.json nor config.yaml): give the folder of a run.")
    context = {
        "name": result.name if result else run.resolve().name,
        "result": result,
        "config_text": _config_text(run / "config.yaml", result),
        "seed_count": len(folders),
        "curves": _curves({_seed(folder): _read_log(folder / "metrics.jsonl") for folder in folders}),
        "mistakes": _mistakes(folders),
        "artefact": next(
            (f"{run.resolve().name}/{f.name}/artefact" for f in folders if (f / "artefact").is_dir()), None
        ),
        **(_scores(result, run) | _facts(result) | {"confusion": _confusion(result, run)} if result else {}),
    }
    page = template("report.html.jinja").render(context)
    path = run / "report.html"
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))  # names of files may hold lone surrogates
    return path


def _read_log(path: Path) -> list[dict[str, Any]]:
    """The readable lines of ``metrics.jsonl``: a killed run may leave half a line, a resumed one goes on after it."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries


def _config_text(path: Path, result: Result | None) -> str:
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    return yaml.safe_dump(result.config, sort_keys=False, allow_unicode=True) if result and result.config else ""


def _seed(folder: Path) -> str:
    return folder.name.removeprefix("seed-")


def _curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Markup]:
    """Loss, validation metric and learning rate over all stages, one after the other."""
    lengths: dict[str, int] = {}
    for entry in itertools.chain.from_iterable(logs.values()):
        stage = str(entry.get("stage"))
        lengths[stage] = max(lengths.get(stage, 0), entry["step"])
    starts = dict(zip(lengths, itertools.accumulate(lengths.values(), initial=0), strict=False))
    names = {
        name for entry in itertools.chain.from_iterable(logs.values()) for name in entry if name.startswith("val/")
    }
    val = min(names, key=lambda name: (name != "val/accuracy", name == "val/loss", name), default="val/")
    titles = {"loss": "training loss", val: f"validation {METRIC_LABELS.get(val[4:], val[4:])}", "lr": "learning rate"}
    figures = []
    for name, title in titles.items():
        runs = {seed: points for seed, log in logs.items() if (points := _series(log, name, starts))}
        if runs:
            later = [start for start in starts.values() if start]
            figures.append(Markup(plots.learning_curves(runs, title, percent=is_share(name), boundaries=later)))
    return figures


def _series(log: Sequence[Mapping[str, Any]], name: str, starts: Mapping[str, int]) -> list[tuple[float, float]]:
    """(step, value) of one logged quantity; where a resumed run logged a step again, the later line counts."""
    values = {
        starts[str(entry.get("stage"))] + entry["step"]: entry[name]
        for entry in log
        if isinstance(entry.get(name), (int, float)) and math.isfinite(entry[name])
    }
    return sorted(values.items())


def _mistakes(folders: Sequence[Path]) -> dict[str, Any] | None:
    """The worst mistakes of the first seed that has some."""
    for folder in folders:
        if found := read_checked(folder / "mistakes.json", list[Mistake]):
            return {"seed": _seed(folder), "worst": found[:MISTAKES]}
    return None


def _scores(result: Result, run: Path) -> dict[str, Any]:
    """Rows of the tables: accuracies first, or all metrics where there is no accuracy; ``lead`` is the one in words."""
    rows = sorted((_row(name, result) for name in result.metrics), key=lambda row: list(KINDS).index(row["kind"]))
    facts = {seed: one.facts.manipulation for seed, one in result.seeds.items()}
    manipulation = manipulation_section(run, rows, {seed: each for seed, each in facts.items() if each})
    sessions = session_section(rows, next(iter(result.seeds.values())).facts.incremental)
    if sessions:
        rows = [row for row in rows if not row["name"].startswith(PREFIXES)]
    headline = [] if manipulation else ([row for row in rows if row["metric"] == "accuracy"] or rows)[:LISTED]
    return {
        "sessions": sessions,
        "manipulation": manipulation,
        "headline": headline,
        "others": [row for row in rows if row not in headline],
        "lead": manipulation["lead"] if manipulation else headline[0] if headline else None,
        "kept": next((row for row in headline if row["kind"] == "retention"), None),
    }


def _row(name: str, result: Result) -> dict[str, Any]:
    """One metric before and after: ``test/fluent/accuracy`` is the accuracy on ``fluent``, a set of kind ``test``."""
    group, _, metric = name.rpartition("/")
    kind, _, set_name = group.partition("/")
    pairs = {seed: (one.baseline.get(name), one.metrics.get(name)) for seed, one in result.seeds.items()}
    changes = [new - old for old, new in pairs.values() if old is not None and new is not None]
    return {
        "name": name,
        "kind": kind if kind in KINDS else "",
        "set": set_name or group or name,
        "metric": metric,
        "label": METRIC_LABELS.get(metric, metric.replace("_", " ")),
        "fraction": is_share(name),
        "sign": sign(name),
        "before": result.baseline.get(name),
        "after": result.metrics[name],
        "change": Score(mean=fmean(changes), std=pstdev(changes), n=len(changes)) if changes else None,
        "pairs": pairs,
    }


def _facts(result: Result) -> dict[str, Any]:
    """What was adapted, on what, at which cost; costs are means over seeds, the other facts are the first seed's."""
    seeds = list(result.seeds.values())
    sections = {key: value if isinstance(value, dict) else {} for key, value in result.config.items()}
    planned = result.config.get("seeds")
    costs = {name: [getattr(seed.cost, name) for seed in seeds] for name in Cost.model_fields}
    return {
        "facts": seeds[0].facts,
        "sections": sections,
        "trained": seeds[0].facts.trainable_parameters != 0,
        "planned": len(planned) if isinstance(planned, list) else len(seeds),
        "cost": {name: fmean(values) for name, values in costs.items() if None not in values},
        "coverage": seeds[0].coverage.rows if seeds[0].coverage else [],
    }


def _confusion(result: Result, run: Path) -> dict[str, Any] | None:
    """The first test set's confusion matrix, summed over seeds, and its most confused pairs."""
    seeds = list(result.seeds.values())
    classes = seeds[0].classes
    name = next((name for name in seeds[0].confusion if name.startswith("test/")), None)
    if name is None or not classes:
        return None
    total = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for seed in seeds:
        counts = seed.confusion.get(name, [])
        if seed.classes != classes or [len(row) for row in counts] != [len(classes)] * len(classes):
            raise ArtefactError(
                f"{run / 'result.json'}: damaged at seeds.{seed.seed}.confusion.{name} (not {len(classes)} rows and "
                "columns for the first seed's classes): run the evaluation again."
            )
        total += counts
    readable = len(classes) <= MATRIX_LIMIT
    wrong = np.argwhere(total * (1 - np.eye(len(classes), dtype=np.int64)))
    pairs = [(int(total[i, j]), float(total[i, j] / total[i].sum()), classes[i], classes[j]) for i, j in wrong]
    pairs.sort(key=lambda pair: (-pair[0], -pair[1], pair[2:]))
    return {
        "set": name.removeprefix("test/"),
        "matrix": Markup(plots.confusion(total, classes)) if readable else None,
        "pairs": pairs[: 10 if readable else 20],
    }


def _figure(value: float | None, fraction: bool = False, signed: bool = False) -> str:
    """A score as text: fractions as percent with one decimal, other numbers with three; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{abs(100 * value):.1f}" if fraction else f"{abs(value):.3f}"
    if not text.strip("0."):
        return text
    return ("−" if value < 0 else "+" if signed else "") + text


def _short(value: float | None) -> str:
    """Three digits, however small the number."""
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def _thousands(value: float) -> str:
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def template(name: str) -> Template:
    """A page's template of this folder: everything it is given is escaped, but markup."""
    environment = Environment(
        loader=PackageLoader("vision_lowrank", "viz"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "short": _short, "thousands": _thousands, "duration": _duration}
    environment.filters |= {"shell": shlex.quote, "literal": json.dumps}
    environment.globals["KINDS"] = KINDS
    return environment.get_template(name)
