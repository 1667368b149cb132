"""Evaluation: every sample once, over all processes, in the order of the data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..config.schema import EngineConfig
from ..errors import DataError
from ..modes import eval_mode
from .progress import Display
from .runtime import Runtime
from .sampler import eval_loader
from .seeding import Stream, seed_everything
from .task import Outputs, Task


def evaluate_sets(
    task: Task, sets: Mapping[str, Dataset], config: EngineConfig, runtime: Runtime, display: Display, *, seed: int
) -> tuple[dict[str, float], dict[str, Outputs]]:
    """Evaluate `task` on named data sets, in eval mode, without gradients, in the precision of training.

    Returns:
        Metrics named ``{set}/{metric}``, and each set's outputs: CPU tensors whose first dimension is the data set's,
        in its order; half precision becomes float32. Both are the same in every process.

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
    task: Task, sets: Mapping[str, Dataset], config: EngineConfig, runtime: Runtime, display: Display, *, seed: int
) -> Iterator[tuple[str, Outputs]]:
    """Names and outputs of :func:`evaluate_sets`, one set after another, each in eval mode and without gradients.

    Raises:
        DataError: a set is empty.
    """
    for name, data in sets.items():
        if len(data) == 0:  # type: ignore[arg-type]
            raise DataError(f"evaluation set '{name}' is empty: give it at least one sample.")
        with eval_mode(task), torch.no_grad(), runtime.autocast(config.precision):
            outputs = _evaluate_set(task, name, data, config, runtime, display, seed)
        yield name, outputs


def _evaluate_set(
    task: Task, name: str, data: Dataset, config: EngineConfig, runtime: Runtime, display: Display, seed: int
) -> Outputs:
    seed_everything(seed, Stream.EVAL_STEP, 0)
    task.begin_eval(name)
    share = {"rank": runtime.rank, "world_size": runtime.world_size}
    loader = eval_loader(data, config.eval_batch_size, seed=seed, workers=config.workers, **share)
    parts: list[Outputs] = []
    with display.track(f"evaluate {name}", len(loader), every=max(1, len(loader))) as advance:
        for number, batch in enumerate(loader, start=1):
            seed_everything(seed, Stream.EVAL_STEP, number)
            parts.append({key: _to_host(value) for key, value in task.eval_step(runtime.to_device(batch)).items()})
            advance("")
    own = {key: torch.cat([part[key] for part in parts]) for key in parts[0]} if parts else {}
    return _in_order(runtime.gather(own), len(data))  # type: ignore[arg-type]


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32 if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.dtype)


def _in_order(shares: list[Outputs], size: int) -> Outputs:
    """Join the shares of W processes; process r holds samples r, r + W, ... of `size`."""
    order = torch.cat([torch.arange(rank, size, len(shares)) for rank in range(len(shares))]).argsort()
    return {key: torch.cat([share[key] for share in shares if share])[order] for key in shares[0]}
