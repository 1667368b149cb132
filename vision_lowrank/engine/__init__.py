"""The engine: one loop for every task, with hooks, checkpoints, resume and logging.

The names below are loaded on first use: tasks and inference need small parts of this package, not the loop.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hooks import Hook, HookSection
    from .loop import Engine
    from .runtime import Runtime
    from .signals import Interrupted
    from .step_runner import TrainingDiverged

_LAZY = {
    "Engine": ".loop", "Hook": ".hooks", "HookSection": ".hooks", "Interrupted": ".signals", "Runtime": ".runtime",
    "TrainingDiverged": ".step_runner",
}  # fmt: skip

__all__ = ["Engine", "Hook", "HookSection", "Interrupted", "Runtime", "TrainingDiverged"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name], __name__), name)
