"""Tensors as one safetensors file: the old file or the new one, never half of one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..files import flush

SUFFIX = ".safetensors"


def file_in(out: Path, name: str, suffix: str = SUFFIX) -> Path:
    """Return `out` itself where it names a file with `suffix`, else the file `name` in the folder `out`."""
    return out if out.suffix == suffix else out / name


def save_tensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a safetensors file; tensors that share memory become copies.

    Args:
        path: its folder is created, an older file replaced.
        state: name -> tensor of any type, on any device.
        metadata: goes into the header.

    Returns:
        `path`.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
        save_file(copies, temporary, metadata={"format": "pt", **metadata})
        flush(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{path}' cannot be written: {str(error).splitlines()[0]}; choose another place.") from error
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)
    return path
