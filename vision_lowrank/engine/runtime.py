"""Where a run computes: device, precision and processes. The only file of the engine that touches accelerate.

Started by torchrun, the processes share the work (NCCL on GPUs, gloo on CPUs); started plainly, there is one process
and nothing to configure. Data parallelism is one all-reduce of the trained gradients after the backward pass, instead
of a wrapper around the model: adapters are small, so nothing is gained by overlapping, while a parameter that a step
does not use, a hook that freezes layers and a gradient rule that differentiates several times all just work.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist

# Its functions take the process group of the moment as a default argument: imported later, by torch.optim's first step
# for one, they would keep the group alive after it was left.
import torch.distributed.nn
from accelerate import PartialState
from accelerate.utils import broadcast, gather_object, reduce, send_to_device
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UserError

T = TypeVar("T")

AUTOCAST_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Runtime:
    """Device, precision and collective operations of this process.

    Attributes:
        device: where the task lives.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(self) -> None:
        # without `cpu` accelerate sees no processes of torchrun on a machine without accelerators
        self._state = PartialState(cpu=not torch.accelerator.is_available())
        self.device: torch.device = self._state.device
        self.rank: int = self._state.process_index
        self.world_size: int = self._state.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and draws progress bars."""
        return self.rank == 0

    def check_precision(self, precision: str) -> None:
        """Refuse a precision that the device cannot train in.

        Raises:
            UserError: fp16 without CUDA, or bf16 on a GPU that lacks it.
        """
        kind = self.device.type
        if precision == "fp16" and kind != "cuda":
            raise UserError(f"precision fp16 needs a CUDA device, but this run is on '{kind}': use bf16 or fp32.")
        if precision == "bf16" and kind == "cuda" and not torch.cuda.is_bf16_supported():
            raise UserError("precision bf16 is not supported by this GPU: use fp16 or fp32.")

    @contextmanager
    def autocast(self, precision: str) -> Iterator[None]:
        """Return a context in which matrix products run in `precision`; the identity for fp32."""
        lower = precision != "fp32"
        # The backward pass of the CPU's fused attention takes up to five times as long in bf16 as two plain products.
        plain = lower and self.device.type == "cpu" and torch.is_grad_enabled()
        core = sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()
        with core, torch.autocast(self.device.type, AUTOCAST_TYPES[precision], enabled=lower):
            yield

    def scaler(self, precision: str) -> torch.amp.GradScaler:
        """Return loss scaling for fp16; the identity for every other precision."""
        return torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    def to_device(self, batch: T) -> T:
        """Move all tensors in `batch` to the device, however nested."""
        return send_to_device(batch, self.device, non_blocking=self.device.type == "cuda")

    def sum_values(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Sum scalars over processes; every process must give the same names. One transfer to the host."""
        stacked = torch.stack([value.detach().float() for value in values.values()])
        return dict(zip(values, self._sum(stacked).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Tell whether `flag` holds in any process."""
        return bool(flag) if self.world_size == 1 else bool(self._sum(torch.tensor(float(flag), device=self.device)))

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every ``.grad`` by its sum over processes; a parameter that no process used keeps None."""
        if self.world_size == 1:
            return
        parameters = [p for p in parameters if not isinstance(p, DTensor)]  # the blocks sum their own
        used = self._sum(torch.tensor([float(p.grad is not None) for p in parameters], device=self.device))
        shared = [p for p, count in zip(parameters, used.tolist(), strict=True) if count]
        for dtype in {p.dtype for p in shared}:
            group = [p for p in shared if p.dtype == dtype]
            flat = [(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in group]
            pieces = self._sum(torch.cat(flat)).split([p.numel() for p in group])
            for parameter, piece in zip(group, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)

    def broadcast(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return process 0's copy of `state`, in every process."""
        if self.world_size == 1:
            return dict(state)
        return broadcast({name: tensor.detach().to(self.device).clone() for name, tensor in state.items()})

    def gather(self, value: T) -> list[T]:
        """Gather the value of every process, in order of rank."""
        return gather_object([value]) if self.world_size > 1 else [value]

    def wait(self) -> None:
        """Wait until every process is here."""
        self._state.wait_for_everyone()

    def peak_memory(self) -> float:
        """Measure peak memory so far in MiB: allocated on a CUDA device, else resident in this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20

    def _sum(self, tensor: Tensor) -> Tensor:
        return reduce(tensor, "sum") if self.world_size > 1 else tensor


@atexit.register
def _leave() -> None:
    """Leave the other processes while Python still runs.

    A worker thread of gloo or NCCL that frees a tensor during the interpreter's finalisation aborts the process, after
    a run that went well (pytorch/pytorch#179291).
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
