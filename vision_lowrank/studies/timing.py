"""What a training step costs in time: several configs on one machine, taking turns, so that its moods hit all alike."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..config import RunConfig
from ..engine.loop import Engine
from ..engine.task import measured_stage
from ..errors import UserError
from .run import build_task


def step_times(configs: Sequence[RunConfig], rounds: int) -> list[list[float]]:
    """Measure a training step on one batch, in seconds: each config `rounds` times, the configs taking turns.

    Raises:
        UserError: one of them trains nothing.
    """
    times: list[list[float]] = [[] for _ in configs]
    with tempfile.TemporaryDirectory() as scratch:
        engines = []
        for index, config in enumerate(configs):
            task = build_task(config, config.seed)
            if not (stages := task.stages()):
                raise UserError(f"task {config.task.type} trains nothing: it has no step to time.")
            engine = Engine(config.engine, task, Path(scratch) / str(index), seed=1, rule=config.rule)
            engine.dry_step(measured_stage(stages))
            engines.append(engine)
        for _ in range(rounds):
            for engine, values in zip(engines, times, strict=True):
                start = time.perf_counter()
                engine.update()
                values.append(time.perf_counter() - start)
    return times
