"""Checkpoints that are either whole or absent, and that resume a run bit for bit.

``checkpoints/step-000120`` is written while a stage runs, ``checkpoints/stage-000`` when it has finished. Each holds

    trained.safetensors   what the task calls its trained state
    kept.safetensors      the state that the stage keeps so far, where it keeps another than the last
    loop.pt               optimiser, loss scaler, the kept state's numbers, hook states; read with ``weights_only=True``
    state.json            position, identity of the run, SHA-256 of the other files

A checkpoint is written under a temporary name, its files and folder are synced, then it is renamed: a killed process
or a full disk leaves at most a temporary folder, which the next save clears. The newest two ``step`` checkpoints and
all ``stage`` checkpoints are kept: a resumed run replays the finished stages from the latter.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as pack_tensors

from ..errors import ArtefactError
from .keep import State

KEPT_STEPS = 2
TEMPORARY = ".tmp-"

# What reading a damaged file raises; UnpicklingError is torch's refusal of anything but tensors and plain values.
DAMAGE = (OSError, ValueError, KeyError, TypeError, SafetensorError, pickle.UnpicklingError)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where in the run a checkpoint was written.

    Attributes:
        stage: index of the stage.
        step: optimiser steps done in this stage.
        global_step: optimiser steps done in all stages.
        finished: whether the stage is over and its final state is what the checkpoint holds.
        log_size: bytes of ``metrics.jsonl`` at that time.
    """

    stage: int
    step: int
    global_step: int
    finished: bool = False
    log_size: int = 0

    @property
    def name(self) -> str:
        """Name of the checkpoint's folder."""
        return f"stage-{self.stage:03d}" if self.finished else f"step-{self.global_step:06d}"

    @property
    def order(self) -> tuple[int, int, bool]:
        """Sorts positions in the order in which a run passes them."""
        return self.stage, self.step, self.finished


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: position, trained tensors, kept tensors and everything else the loop needs."""

    position: Position
    trained: State
    kept: State | None = None
    loop: dict[str, Any] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they live; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return len(self._folders())

    def save(self, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> Path:
        """Write `checkpoint` and remove step checkpoints that are no longer needed.

        Raises:
            ArtefactError: it could not be written; the ones before it are untouched.
        """
        target = self.folder / checkpoint.position.name
        temporary = self.folder / f"{TEMPORARY}{target.name}"
        try:
            self._clear_temporary()
            temporary.mkdir(parents=True)
            self._write(temporary, checkpoint, identity)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
            _sync(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise ArtefactError(
                f"checkpoint {target} could not be written ({error.strerror or error}): make room and resume; "
                "the checkpoints before it are untouched."
            ) from error
        self._prune(checkpoint.position)
        return target

    def latest(self, identity: Mapping[str, Any]) -> Checkpoint | None:
        """Return the newest whole checkpoint, passing over damaged ones with a warning; None where there is none.

        Raises:
            ArtefactError: it belongs to a run with other settings, or every checkpoint is damaged.
        """
        damaged = []
        for folder in sorted(self._folders(), key=_order, reverse=True):
            try:
                return self._read(folder, identity)
            except DAMAGE as error:
                damaged.append(folder.name)
                logger.warning("checkpoint %s is damaged (%s): going back to the one before it.", folder, error)
        if damaged:
            raise ArtefactError(f"all checkpoints in {self.folder} are damaged: delete the folder to start again.")
        return None

    def finished(self, stage: int, identity: Mapping[str, Any]) -> Checkpoint:
        """Return the checkpoint of a finished stage.

        Raises:
            ArtefactError: it is missing or damaged.
        """
        folder = self.folder / Position(stage, 0, 0, finished=True).name
        try:
            return self._read(folder, identity)
        except DAMAGE as error:
            raise ArtefactError(f"checkpoint {folder} is missing or damaged ({error}): start the run again.") from error

    def _folders(self) -> list[Path]:
        return [*self.folder.glob("step-*"), *self.folder.glob("stage-*")]

    def _write(self, folder: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
        loop = io.BytesIO()
        torch.save(checkpoint.loop, loop)
        files = {"trained.safetensors": pack_tensors(checkpoint.trained), "loop.pt": loop.getvalue()}
        if checkpoint.kept is not None:
            files["kept.safetensors"] = pack_tensors(checkpoint.kept)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        state = {"position": asdict(checkpoint.position), "identity": dict(identity), "files": digests}
        for name, content in {**files, "state.json": json.dumps(state, indent=1).encode()}.items():
            with open(folder / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _sync(folder)

    def _read(self, folder: Path, identity: Mapping[str, Any]) -> Checkpoint:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        contents = {name: (folder / name).read_bytes() for name in state["files"]}
        for name, digest in state["files"].items():
            if hashlib.sha256(contents[name]).hexdigest() != digest:
                raise ValueError(f"{name} has changed since it was written")
        _check_identity(folder, state["identity"], identity)
        kept = contents.get("kept.safetensors")
        return Checkpoint(
            Position(**state["position"]),
            read_tensors(contents["trained.safetensors"]),
            read_tensors(kept) if kept is not None else None,
            torch.load(io.BytesIO(contents["loop.pt"]), map_location="cpu", weights_only=True),
        )

    def _prune(self, newest: Position) -> None:
        """Keep the newest steps; what claims to be newer still is damaged and was passed over."""
        orders = {folder: _order(folder) for folder in self.folder.glob("step-*")}
        past = sorted((folder for folder, order in orders.items() if order <= newest.order), key=orders.__getitem__)
        for folder in orders.keys() - set(past[-KEPT_STEPS:]):
            shutil.rmtree(folder, ignore_errors=True)

    def _clear_temporary(self) -> None:
        for folder in self.folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(folder)


def _order(folder: Path) -> tuple[int, int, bool]:
    """Return a checkpoint folder's order; an unreadable one counts as newest, so that reading it tells of damage."""
    try:
        return Position(**json.loads((folder / "state.json").read_text(encoding="utf-8"))["position"]).order
    except (OSError, ValueError, KeyError, TypeError):
        return 2**63, 0, False


def _check_identity(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    expected = json.loads(json.dumps(expected))
    for key in sorted(found.keys() | expected.keys()):
        was, now = found.get(key), expected.get(key)
        if was != now:
            raise ArtefactError(
                f"checkpoint {folder} was made with {key} = {was}, not {now}: "
                "resume with the settings it was made with, or use another folder."
            )


def _sync(folder: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
