"""The engine: one loop for every task, with hooks, checkpoints, resume and logging."""

from .hooks import Hook
from .loop import Engine, TrainingDiverged
from .runtime import Runtime
from .signals import Interrupted

__all__ = ["Engine", "Hook", "Interrupted", "Runtime", "TrainingDiverged"]
