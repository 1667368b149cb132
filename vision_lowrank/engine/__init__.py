"""The engine: one loop for every task, with hooks, checkpoints, resume and logging."""

from .hooks import Hook, HookSection
from .loop import Engine
from .runtime import Runtime
from .signals import Interrupted
from .step_runner import TrainingDiverged

__all__ = ["Engine", "Hook", "HookSection", "Interrupted", "Runtime", "TrainingDiverged"]
