"""What a step costs: peak tensor memory and time, measured by running it.

Peak memory is the largest sum of live tensor bytes that torch's allocator saw *above* what was live before the step
(activations, gradients, optimiser state made in it), from the profiler's allocation events. It is independent of
Python, of the process and of the allocator's caching, so methods can be compared on any device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class StepCost:
    """Cost of one step.

    Attributes:
        seconds: median wall time.
        peak_bytes: largest extra tensor memory during a step.
    """

    seconds: float
    peak_bytes: int


def step_cost(step: Callable[[], object], repeats: int = 3) -> StepCost:
    """Run `step` once to warm up, once under the profiler and `repeats` times against the clock."""
    step()
    peak = peak_bytes(step)
    return StepCost(median(_seconds(step) for _ in range(repeats)), peak)


def peak_bytes(step: Callable[[], object]) -> int:
    """Measure the largest extra tensor memory in bytes while `step` runs, on the CPU or the current CUDA device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its profiler writes to stderr when it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = record.profiler.kineto_results.events()  # pyrefly: ignore[missing-attribute]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    live = peak = 0
    for _, size in changes:
        live += size
        peak = max(peak, live)
    return peak


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
