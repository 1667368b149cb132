"""Does every adapter take part? One probe pass answers for each adapted module.

An adapter can sit on a module whose forward is never called (the output projection of ``nn.MultiheadAttention``, a
tower that the task does not use): it trains nothing and says nothing. :func:`coverage` runs the model once on random
input, takes L = sum_i <w_i, y_i> with random w_i over its outputs y_i, and asks autograd for dL/dp of every trainable
tensor p of every adapter. *Reached* means that autograd has a path from L to p; the value may be zero, as it is for
LoRA's A while B = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..backbones.adapted import plain_path, unwrapped
from ..backbones.base import Backbone
from ..errors import DeadAdapterError, UserError
from ..modes import eval_mode, ordinary

Probe: TypeAlias = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class CoverageRow:
    """One adapted module.

    Attributes:
        module: path inside the model.
        adapter: kind of its tuner layer, such as ``lora.Linear``.
        parameters: trainable scalars of the adapter.
        called: whether its forward ran.
        gradient_reached: whether a gradient path leads to every trainable tensor.
    """

    module: str
    adapter: str
    parameters: int
    called: bool
    gradient_reached: bool

    @property
    def alive(self) -> bool:
        """Called, and reached by a gradient wherever something trains."""
        return self.called and self.gradient_reached


@dataclass(frozen=True)
class Coverage:
    """What a probe pass found; ``print`` shows a table."""

    rows: tuple[CoverageRow, ...]

    @property
    def dead(self) -> tuple[CoverageRow, ...]:
        """Rows that would learn nothing."""
        return tuple(row for row in self.rows if not row.alive)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "adapted": len(self.rows),
            "dead": len(self.dead),
            "parameters": sum(row.parameters for row in self.rows),
            "rows": [asdict(row) for row in self.rows],
        }

    def __str__(self) -> str:
        head = ("module", "adapter", "parameters", "called", "gradient")
        marks = {True: "yes", False: "NO"}
        cells = [head] + [
            (row.module, row.adapter, f"{row.parameters:,}", marks[row.called], marks[row.gradient_reached])
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        total = sum(row.parameters for row in self.rows)
        lines.append(f"{len(self.rows)} adapted modules, {total:,} trainable parameters, {len(self.dead)} dead")
        return "\n".join(line.rstrip() for line in lines)


@ordinary()
def coverage(model: nn.Module, probe: Probe | None = None, *, strict: bool = True) -> Coverage:
    """Check every adapter of `model` with one forward and one backward pass.

    Parameters, gradients, buffers, training mode and random state are left as they were.

    Args:
        model: a model with PEFT tuner layers.
        probe: ``probe(model)`` runs the model and returns its outputs (a tensor, or a sequence or mapping of them).
            Default, for a :class:`Backbone` inside `model`: :meth:`Backbone.probe`, such as two random pictures and
            two short texts.
        strict: raise where an adapter is dead.

    Raises:
        DeadAdapterError: an adapted module is never called, or a trainable tensor is reached by no gradient.
        UserError: `model` has no adapter, or needs a `probe`.
    """
    model = unwrapped(model)
    layers = {plain_path(path): child for path, child in model.named_modules() if isinstance(child, BaseTunerLayer)}
    if not layers:
        raise UserError(f"{type(model).__name__} has no adapter: attach one before coverage is asked for.")
    if any(layer.merged or layer.disable_adapters for layer in layers.values()):
        raise UserError(
            "coverage looks at adapters at work, and these are merged or switched off: unmerge or enable them."
        )
    probe = probe or _default_probe(model)
    trainable = {path: _trainable(layer) for path, layer in layers.items()}
    tensors = list({id(p): p for group in trainable.values() for p in group}.values())
    with _undisturbed(model), _calls(layers) as called:
        loss = _weighted_sum(probe(model))
        reached: set[int] = set()
        if tensors and loss.requires_grad:
            gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
            reached = {id(p) for p, gradient in zip(tensors, gradients, strict=True) if gradient is not None}
    report = Coverage(
        tuple(
            CoverageRow(
                path,
                _kind(layer),
                sum(p.numel() for p in trainable[path]),
                path in called,
                all(id(p) in reached for p in trainable[path]),
            )
            for path, layer in layers.items()
        )
    )
    if strict and report.dead:
        raise DeadAdapterError(_complaint(report))
    return report


def _complaint(report: Coverage) -> str:
    first = ", ".join(f"'{row.module}' ({_fault(row)})" for row in report.dead[:3])
    more = ", …" if len(report.dead) > 3 else ""
    return (
        f"{len(report.dead)} of {len(report.rows)} adapted modules are dead: {first}{more}. "
        "Call split_attention before attaching, and adapt only towers that the task uses; "
        "coverage(model, strict=False) lists all."
    )


def _fault(row: CoverageRow) -> str:
    return "no gradient" if row.called else "never called"


def _kind(layer: nn.Module) -> str:
    """Name a layer's kind, ``lora.Linear`` for ``peft.tuners.lora.layer.Linear``; other packages' by the file."""
    parts = [part for part in type(layer).__module__.split(".") if part != "layer"]
    return f"{parts[-1]}.{type(layer).__name__}"


def _trainable(layer: nn.Module) -> list[nn.Parameter]:
    """List what trains in `layer` itself, without tuner layers nested in it (they have rows of their own)."""
    inner = [child for child in layer.modules() if isinstance(child, BaseTunerLayer) and child is not layer]
    nested = {id(p) for child in inner for p in child.parameters()}
    return [p for p in layer.parameters() if p.requires_grad and id(p) not in nested]


def _default_probe(model: nn.Module) -> Probe:
    backbone = next((child for child in model.modules() if isinstance(child, Backbone)), None)
    if backbone is None:
        raise UserError(f"{type(model).__name__} holds no Backbone: give coverage a probe, such as lambda m: m(x).")
    return lambda _: backbone.probe()


def _weighted_sum(outputs: Any) -> Tensor:
    """Compute a scalar that depends on every floating-point tensor in `outputs`, with random weights."""
    terms = [(y.float() * torch.randn_like(y, dtype=torch.float)).sum() for y in _tensors(outputs)]
    if not terms:
        raise UserError("the probe returned no floating-point tensor: let it return the model's outputs.")
    return torch.stack(terms).sum()


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from _tensors(value)


@contextmanager
def _calls(layers: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """Yield the paths of the layers whose forward runs inside the block."""
    called: set[str] = set()
    handles = [layer.register_forward_hook(lambda *_, path=path: called.add(path)) for path, layer in layers.items()]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode with gradients and a fixed random state; everything is put back at the end."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.enable_grad(), eval_mode(model):
        torch.manual_seed(0)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
