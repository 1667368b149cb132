"""Evaluation: every sample once, over all processes, in the order of the data set."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..config.schema import EngineConfig
from ..errors import DataError
from ..metrics.names import told
from ..modes import eval_mode
from .outputs import in_order, join, to_host
from .progress import Display
from .runtime import Runtime
from .sampler import eval_loader
from .seeding import Stream, seed_everything
from .shard import whole_blocks
from .task import EvalSet, EvalSets, Outputs, Task


def evaluate_sets(
    task: Task, sets: EvalSets, config: EngineConfig, runtime: Runtime, display: Display, *, seed: int
) -> tuple[dict[str, float], dict[str, Outputs]]:
    """Evaluate `task` on named data sets, in eval mode, without gradients, in the precision of training.

    Returns:
        Metrics named ``{set}/{metric}``, and each set's outputs (:mod:`.outputs`), on the CPU in the order of the set.
        Both are the same in every process.

    Raises:
        DataError: a set is empty.
    """
    metrics: dict[str, float] = {}
    outputs: dict[str, Outputs] = {}
    for name, found in collect_sets(task, sets, config, runtime, display, seed=seed):
        outputs[name] = found
        metrics |= {f"{name}/{key}": float(value) for key, value in task.metrics(name, found).items()}
    return metrics, outputs


def collect_sets(
    task: Task, sets: EvalSets, config: EngineConfig, runtime: Runtime, display: Display, *, seed: int
) -> Iterator[tuple[str, Outputs]]:
    """Yield names and outputs of :func:`evaluate_sets`, set after set, each in eval mode and without gradients.

    Raises:
        DataError: a set is empty.
    """
    for name, data in sets.items():
        each = data if isinstance(data, EvalSet) else EvalSet(data)
        if len(each.data) == 0:  # type: ignore[arg-type]
            raise DataError(f"evaluation set '{name}' is empty: give it at least one sample.")
        with eval_mode(task), torch.no_grad(), whole_blocks(task), runtime.autocast(config.precision):
            outputs = _evaluate_set(task, name, each, config, runtime, display, seed)
        yield name, outputs


def _evaluate_set(
    task: Task, name: str, each: EvalSet, config: EngineConfig, runtime: Runtime, display: Display, seed: int
) -> Outputs:
    seed_everything(seed, Stream.EVAL_STEP, 0)
    task.begin_eval(name)
    size = each.batch_size or config.eval_batch_size
    how = {"collate": each.collate, "workers": config.workers, "rank": runtime.rank, "world_size": runtime.world_size}
    loader = eval_loader(each.data, size, seed=seed, **how)
    parts: list[Outputs] = []
    with display.track(f"evaluate {told(name)}", len(loader), every=max(1, len(loader))) as advance:
        for number, batch in enumerate(loader, start=1):
            seed_everything(seed, Stream.EVAL_STEP, number)
            parts.append(to_host(task.eval_step(runtime.to_device(batch))))
            advance("")
    return in_order(runtime.gather(join(parts)), len(each.data))  # type: ignore[arg-type]
