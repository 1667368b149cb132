"""Copies of what a task has trained: taken for checkpoints and kept states, and put back."""

from __future__ import annotations

import torch

from ..errors import ArtefactError
from .keep import State
from .shard import divided_like, gathered
from .task import Task


def snapshot(task: Task) -> State:
    """Copy the task's trained state to the CPU, whole, sharing no memory with it; all processes take part."""
    return copy_to_host(gathered(task.trained_state()))


def copy_to_host(state: State) -> State:
    """Copy whole tensors to the CPU, contiguous, sharing no memory with them."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def restore(task: Task, state: State) -> None:
    """Put a :func:`snapshot` back.

    Raises:
        ArtefactError: its tensors are not those of `task`.
    """
    own = task.trained_state()
    # Copying a tensor into one of another shape may broadcast silently.
    odd = [name for name in own.keys() | state.keys() if _shape(own, name) != _shape(state, name)]
    if odd:
        raise ArtefactError(
            f"the model is not the one the checkpoint was made with: {len(odd)} tensor(s) differ in shape or are "
            f"missing, such as {min(odd)}: use the settings it was made with."
        )
    task.load_trained_state({name: divided_like(state[name], own[name]) for name in own})


def _shape(state: State, name: str) -> torch.Size | None:
    return state[name].shape if name in state else None
