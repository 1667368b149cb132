"""The learning rate of a run that has several to choose from: the one with the best validation metric.

The first seed is trained at each, in ``rates/lr-RATE`` of the run's folder; ``rates.json`` holds what was found, so
that a run that goes on chooses nothing anew. No test picture decides anything. A rate that diverges is out.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..engine.runtime import Runtime
from ..engine.step_runner import TrainingDiverged
from ..errors import UserError
from ..files import write_text
from ..metrics.names import sign
from ..registry import registry

Train = Callable[[RunConfig, int, Path], dict[str, Any]]
FILE = "rates.json"


def at_rate(config: RunConfig, rate: float) -> RunConfig:
    """Return `config` with that learning rate, and none to choose from."""
    return config.model_copy(update={"engine": config.engine.model_copy(update={"lr": rate}), "rates": ()})


def choose_rate(config: RunConfig, folder: Path, train: Train) -> tuple[RunConfig, dict[str, float | None]]:
    """Return the config at the best of its rates, and the validation metric at each, None where it diverged.

    Args:
        config: with ``rates``; without any it is returned as it is.
        folder: of the run.
        train: trains one seed in a folder and returns its result, as :func:`.run.run_seed` does.

    Raises:
        UserError: there is no validation metric to choose by, or every rate diverges.
    """
    if not config.rates or not config.engine.steps:
        return config, {}
    settled = config.model_copy(update={"references": ()})
    path = folder / FILE
    if path.is_file():
        found = {float(rate): value for rate, value in json.loads(path.read_text(encoding="utf-8")).items()}
    else:
        places = {rate: folder / "rates" / f"lr-{rate:g}" for rate in config.rates}
        found = {rate: _validated(at_rate(settled, rate), place, train) for rate, place in places.items()}
        if Runtime().is_main:
            write_text(path, json.dumps(found) + "\n")
    metric = registry.get("task", config.task.type).target.selects_by
    known = {rate: value for rate, value in found.items() if value is not None}
    if not known:
        rates = ", ".join(f"{rate:g}" for rate in found)
        raise UserError(f"engine.lr: training diverges at every rate of {rates}: name a lower one.")
    best = max(known, key=lambda rate: sign(metric) * known[rate])
    _take_over(folder, best, config.seed)
    return at_rate(settled, best), {f"{rate:g}": value for rate, value in found.items()}


def _take_over(folder: Path, rate: float, seed: int) -> None:
    """Make the training at the chosen rate the run's own, unless it is there."""
    runtime, own, trained = Runtime(), folder / f"seed-{seed}", folder / "rates" / f"lr-{rate:g}" / f"seed-{seed}"
    runtime.wait()
    if runtime.is_main and trained.is_dir() and not own.exists():
        os.replace(trained, own)
    runtime.wait()


def _validated(config: RunConfig, folder: Path, train: Train) -> float | None:
    """Return the validation metric of the first seed at the config's rate; None where it diverges."""
    metric = registry.get("task", config.task.type).target.selects_by
    try:
        metrics = train(config, config.seed, folder / f"seed-{config.seed}")["metrics"]
    except TrainingDiverged:
        return None
    if metric not in metrics:
        raise UserError(
            f"engine.lr=auto: there is no {metric or 'validation metric'} to choose by, for want of validation "
            "pictures: set some aside, or name a rate, such as engine.lr=2e-3."
        )
    return metrics[metric] if math.isfinite(metrics[metric]) else None
