"""One run from a checked config: build the task, train every seed, evaluate, save, report.

A run folder::

    config.yaml      the resolved config; once something was trained, another config is refused
    rates.json       where there were several learning rates: the validation metric at each (:mod:`.rates`)
    references/      where some were asked for: what the adapter is measured against (:mod:`.references`)
    result.json      metrics (mean, spread, n) beside the untrained model's, per-seed results, environment
    report.html      the same for people
    seed-N/          metrics.jsonl, checkpoints/, artefact/, result.json, and what the task adds

Calling :func:`run` again on a folder goes on where it stopped: finished seeds are kept, an unfinished one resumes from
its newest checkpoint.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

import torch

from ..backbones.adapted import adapted, backbone_of
from ..backbones.weights import NEVER_TRAINED, RANDOM
from ..config import RunConfig, environment, to_tree
from ..engine.cost import peak_bytes
from ..engine.loop import Engine
from ..engine.progress import say
from ..engine.runtime import Runtime
from ..engine.seeding import Stream, seed_everything
from ..engine.task import Task, count, measured_stage
from ..errors import ArtefactError
from ..files import write_text
from ..kernels.linear import recompute_dropout
from ..registry import registry
from ..targets.coverage import coverage
from ..viz.report import write_report
from .folder import opened, run_folder
from .rates import choose_rate
from .references import run_references


def build_task(config: RunConfig, seed: int) -> Task:
    """Build the task that `config` names, with its data, model and adapter.

    Its random weights depend on `seed` alone.
    """
    Runtime()  # chooses this process's device before anything computes on one
    seed_everything(seed, Stream.BUILD)
    return registry.get("task", config.task.type).target(config, seed)


def run(config: RunConfig, folder: Path | None = None) -> dict[str, Any]:
    """Train and evaluate all seeds of `config`; returns what ``result.json`` holds.

    Args:
        config: the settings.
        folder: of the run; None is where `config` says.

    Raises:
        UserError: the run folder holds another config, another process works in it, or it cannot be written; or
            anything a part refuses.
    """
    folder = run_folder(config) if folder is None else folder
    with opened(folder, config):
        return _run(config, folder)


def _run(config: RunConfig, folder: Path) -> dict[str, Any]:
    asked, (config, validation) = config, choose_rate(config, folder, run_seed)
    results = {str(seed): run_seed(config, seed, folder / f"seed-{seed}") for seed in config.seeds}
    baselines = {seed: each["baseline"] for seed, each in results.items()}
    references = run_references(asked, folder, run_seed, baselines)
    for each in references.values():
        each |= {"metrics": summarise(each["seeds"].values())} if "seeds" in each else {}
    result = {
        "name": config.name,
        "task": config.task.type,
        **_leading(config),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config": to_tree(config),
        "environment": environment(),
        "baseline": summarise(each["baseline"] for each in results.values()),
        "metrics": summarise(each["metrics"] for each in results.values()),
        "seeds": results,
        **({"lr": config.engine.lr, "validation": validation} if validation else {}),
        **({"references": references} if references else {}),
    }
    if Runtime().is_main:
        write_text(folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        write_report(folder)
    return result


def _leading(config: RunConfig) -> dict[str, Any]:
    """Return the metrics the task leads with: headline, columns in tables and what its states are chosen by."""
    kind = registry.get("task", config.task.type).target
    names = ("headline", "columns", "selects_by")
    return {name: getattr(kind, name) for name in names}


def run_seed(config: RunConfig, seed: int, folder: Path) -> dict[str, Any]:
    """Train and evaluate one seed; a finished one is read back."""
    path = folder / "result.json"
    if path.is_file():
        if Runtime().is_main:
            say(f"{folder}: already done, and read back")
        return read_result(path)
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    recompute_dropout(config.engine.recompute_dropout)
    task = build_task(config, seed)
    hooks = [section.start() for section in config.hooks]
    engine = Engine(config.engine, task, folder, seed=seed, rule=config.rule, hooks=hooks)
    with closing(engine):
        engine.plan()
        if seed == config.seeds[0]:
            for line in task.data_summary():
                engine.display.say(line)
        base = backbone_of(task.model.backbone)
        if base.weights == RANDOM:
            engine.display.say(f"{base.name}: {NEVER_TRAINED}")
        baseline = _baseline(engine, folder / "baseline.json")
        cost = _cost(engine)
        engine.fit()
        metrics = engine.evaluate("test") | engine.evaluate("val")
    result = {
        "seed": seed,
        "baseline": baseline,
        "metrics": metrics,
        "facts": task.describe(),
        "cost": cost | _step_seconds(folder / "metrics.jsonl"),
        "coverage": _coverage(task),
    }
    if engine.is_main:
        task.write_details(folder, engine.outputs)
        task.save_artefact(folder / "artefact", {"config": to_tree(config), "metrics": metrics, **environment()})
        write_text(path, json.dumps(result, ensure_ascii=False) + "\n")
    return result


def summarise(results: Iterable[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Compute mean, population standard deviation (the convention of the few-shot literature) and n of every metric."""
    rows = list(results)
    names = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    values = {name: [row[name] for row in rows] for name in names}
    return {name: {"mean": fmean(v), "std": pstdev(v), "n": len(v)} for name, v in values.items()}


def _baseline(engine: Engine, path: Path) -> dict[str, float]:
    """Compute test metrics of the model without its adapter, whose start may differ from the base by design.

    They are kept, so that a resumed run does not compute them again; its log has them as if it did.
    """
    if path.is_file():
        baseline = read_result(path)
        engine.take_over("test", baseline)
        return baseline
    baseline = engine.evaluate_untrained()
    if engine.is_main:
        write_text(path, json.dumps(baseline) + "\n")
    return baseline


def _cost(engine: Engine) -> dict[str, Any]:
    """Count parameters, and measure the peak tensor memory of one step (forward and backward) before any training.

    What the training will take is said before it starts.
    """
    task = engine.task
    facts = {"total_parameters": count(task.parameters())}
    stages = [stage for stage in task.stages() if stage.engine.get("steps", engine.config.steps)]
    if not stages:
        return facts
    stage = measured_stage(stages)
    peak, started = peak_bytes(lambda: engine.dry_step(stage)), time.perf_counter()
    engine.dry_step(stage)
    seconds = time.perf_counter() - started
    steps = sum(each.engine.get("steps", engine.config.steps) for each in stages)
    engine.display.say(
        f"{engine.folder}: {steps} steps of about {seconds:.2f} s, some {steps * seconds / 60:.1f} min without "
        f"evaluation; a step needs {peak / 2**20:,.0f} MiB beside the weights"
    )
    return facts | {"peak_memory": peak}


def _step_seconds(path: Path) -> dict[str, float]:
    """Compute the median time of a training step, from the log."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    return {"step_seconds": median(seconds)} if seconds else {}


def _coverage(task: Task) -> dict[str, Any] | None:
    model = task.model.backbone
    return coverage(model).to_dict() if adapted(model) else None


def read_result(path: Path) -> Any:
    """Read what a run wrote as JSON.

    Raises:
        ArtefactError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ArtefactError(f"{path}: not valid JSON: remove the file to compute it again.") from None
