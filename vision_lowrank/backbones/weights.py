"""Weight files: read without running code from them, loaded strictly, with errors that name file and tensor."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config.marks import WEIGHTS
from ..errors import ArtefactError, UserError

RANDOM = "random"
PRETRAINED = "pretrained"
NEVER_TRAINED = "random weights: this base was never trained, so what an adapter makes of it proves nothing"


def is_file(weights: str) -> bool:
    """Tell whether `weights` means a local file rather than a library tag."""
    return weights.endswith(WEIGHTS) or "/" in weights or Path(weights).exists()


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn every way in which a weight file can be unusable into one line.

    Raises:
        UserError: the file does not exist.
        ArtefactError: the file is damaged, holds something other than tensors, or has tensors of other shapes.
    """
    if not Path(path).is_file():
        raise UserError(f"weight file '{path}' does not exist: check the path, or use weights='{RANDOM}'.")
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ArtefactError(
            f"weight file '{path}' is damaged or holds more than tensors, which are not unpickled: "
            "save its state dict as .safetensors."
        ) from error
    except Exception as error:  # noise in a file makes its reader fail in any way at all
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if "size mismatch" in line), lines[0]).rstrip(".")
        raise ArtefactError(f"weight file '{path}' cannot be loaded: {reason}.") from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a ``.safetensors`` or ``torch.save`` file, on the CPU; a ``state_dict`` or ``model`` level
    and a ``module.`` prefix are taken off.

    Raises:
        UserError: the file does not exist.
        ArtefactError: the file is damaged or holds something other than tensors.
    """
    with reading(path):
        if str(path).endswith(".safetensors"):
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for level in ("state_dict", "model"):
            if isinstance(state, Mapping) and isinstance(state.get(level), Mapping):
                state = state[level]
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("it is not a dictionary of tensors")
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_strict(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy `state` into `model`: every tensor must be there, with its shape, and nothing else.

    Raises:
        ArtefactError: a tensor is missing, unexpected or of another shape; `model` may be half loaded.
    """
    with reading(path):
        keys = model.load_state_dict(state, strict=False)
    check_keys(keys.missing_keys, keys.unexpected_keys, path)


def check_keys(missing: list[str], unexpected: list[str], path: str | Path) -> None:
    """Raise ArtefactError where a file lacks tensors of the model or has others; the first of each are named."""
    differences = [
        f"{len(keys)} {word} (first '{keys[0]}')"
        for keys, word in ((missing, "missing"), (unexpected, "unexpected"))
        if keys
    ]
    if differences:
        raise ArtefactError(
            f"weight file '{path}' does not fit the model: tensors {' and '.join(differences)}; "
            "check that it was saved from this architecture."
        )


@contextmanager
def downloading(what: str) -> Iterator[None]:
    """Turn a failed download into one line with the remedy.

    Raises:
        UserError: whatever `what` needs from the network could not be fetched or loaded.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{what} could not be fetched ({reason}): check the network, or give weights='path/to/file.safetensors'."
        ) from error


def half_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of an unsplit model in fp16, on the CPU; integer tensors keep their type."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
