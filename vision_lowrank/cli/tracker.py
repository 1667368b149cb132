"""The tracker that a command works with: the shipped one, or an artefact that the user names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..paths import shipped
from ..tasks.about import read_about
from .imports import without_collection

if TYPE_CHECKING:
    from ..tasks.tracking.model import TrackingModel


def tracker_folder(model: Path | None) -> Path:
    """Return the folder of `model`, or of the shipped tracker where it is None; nothing heavy is imported.

    Raises:
        ArtefactError: there is no artefact.
    """
    folder = model or shipped("data") / "tiny_tracker"
    read_about(folder)
    return folder


def load_tracker(folder: Path, device: str, trust: bool = False) -> TrackingModel:
    """Load a tracker onto a device.

    Raises:
        UserError: it follows nothing, or there is no such device.
    """
    with without_collection():
        from ..tasks.saved import load_model
    from .scan import compute_device

    model: Any = load_model(folder, trust=trust)
    if not hasattr(model, "track_many"):
        raise UserError(f"{folder}: a model for {model.task} follows nothing: give the artefact of a tracker.")
    return model.to(compute_device(device))
