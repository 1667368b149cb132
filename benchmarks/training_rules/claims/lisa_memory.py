"""LISA: what the first step of training keeps in memory, against full fine-tuning and LoRA, on plain ViTs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from shared import Budget
from torch import Tensor

from vision_lowrank.config import RunConfig
from vision_lowrank.engine.cost import peak_bytes
from vision_lowrank.engine.loop import Engine
from vision_lowrank.engine.progress import Display, say
from vision_lowrank.engine.task import count, measured_stage
from vision_lowrank.studies.run import build_task

MODELS = ("timm:vit_small_patch16_224", "timm:vit_base_patch16_224")
BATCH = 4
SIDES: dict[str, tuple[str, ...]] = {
    "full": ("full", "rule.blocks=12"),
    "lisa, 1 block": ("lisa", "rule.blocks=1"),
    "lisa, 2 blocks": ("lisa", "rule.blocks=2"),
    "lora": ("lora", "adapter.towers=[vision]"),
}


def lisa_memory(budget: Budget) -> dict[str, Any]:
    """Measure model -> side -> bytes and shares; random weights, batch 4, a linear head."""
    return {model: {side: memory(budget, model, *changes) for side, changes in SIDES.items()} for model in MODELS}


def memory(budget: Budget, model: str, recipe: str, *changes: str) -> dict[str, float]:
    """Measure the bytes of the first step.

    ``activations`` is what autograd keeps for the backward pass, weights left out; ``peak`` the largest sum of live
    tensors above weights and batch in the whole step, optimiser state and gradients included.
    """
    say(f"  {model}: {recipe} {' '.join(changes)}")
    own = (f"backbone.name={model}", "task.head=linear", f"engine.batch_size={BATCH}", *changes)
    config: RunConfig = budget.config(recipe, *own)
    with tempfile.TemporaryDirectory() as scratch:
        engine = Engine(config.engine, build_task(config, 1), Path(scratch), seed=1, rule=config.rule)
        engine.display = Display(enabled=False)
        saved = Saved(engine)
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            engine.dry_step(measured_stage(engine.task.stages()))
        peak = peak_bytes(engine.update)
    trained = [p for p in engine.task.parameters() if p.grad is not None]
    state = [value for entry in engine.optimizer.state.values() for value in entry.values()]
    return {
        "state": nbytes(value for value in state if isinstance(value, Tensor)),
        "gradients": nbytes(p.grad for p in trained),
        "activations": saved.total,
        "peak": peak,
        "trained": count(trained),
        "share": count(trained) / count(engine.task.parameters()),
    }


class Saved:
    """Sums the storages that autograd keeps, each once, without those of the model."""

    def __init__(self, engine: Engine) -> None:
        self.task = engine.task
        self.sizes: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        """Note a saved tensor, and save it as it is."""
        storage = tensor.untyped_storage()
        self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        """Bytes of all but the model's own tensors."""
        own = {tensor.untyped_storage().data_ptr() for tensor in (*self.task.parameters(), *self.task.buffers())}
        return sum(size for place, size in self.sizes.items() if place not in own)


def nbytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
