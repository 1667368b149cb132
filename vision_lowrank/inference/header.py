"""The header of a scan's results: what a number in them depends on, and what it does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.record import environment
from ..metrics.calibration import Calibration
from .journal import ScanRow
from .predictor import EditModel

READING = "A probability is a likelihood under this model, calibrated on its validation pictures: it is no proof."
LIMITS = (
    "'real' means that this model saw no sign of the kinds of edit it was trained on, not that there is none.",
    "'edited' can be wrong: ordinary processing, heavy compression and unusual pictures cause false alarms.",
    "Kinds of edit, cameras and compression that are unlike the training pictures are judged less reliably.",
    "Boxes and heat maps say where the model looked for its answer; their edges are approximate.",
)


def make_header(
    model: EditModel,
    calibration: Calibration,
    *,
    path: Path,
    explain: bool,
    device: str,
    command: str,
    inputs: int,
    others: int,
) -> dict[str, Any]:
    """Make the header as plain JSON values.

    Args:
        model: that looks at the pictures.
        calibration: its own, or one with another threshold.
        path: where it was loaded from.
        explain: whether its language model was asked for explanations.
        device: where it computes.
        command: that made the results.
        inputs: number of inputs.
        others: number of files in the folders that were no pictures.
    """
    used = {name: value for name, value in calibration.to_dict().items() if name != "real_scores"}  # up to 2000
    framing, identity = model.framing.to_dict(), model.identity
    return {
        "reading": READING,
        "limits": [*LIMITS, *_sentences(model.about.get("limits"))],
        "model": {"identity": identity, "path": str(path), "about": dict(model.about)},
        "preprocessing": {"framing": framing, "picture": "first frame, EXIF orientation applied, 8-bit RGB"},
        "threshold": calibration.threshold,
        "threshold_origin": calibration.origin,
        "calibration": used,
        "settings": {
            "model": identity,
            "framing": framing,
            "calibration": {name: used.get(name) for name in ("temperature", "threshold", "uncertain")},
            "explain": explain,
        },
        "device": device,
        "command": command,
        "environment": environment(),
        "inputs": inputs,
        "other_files": others,
    }


def counts(rows: Sequence[ScanRow]) -> dict[str, int]:
    """Count the rows by verdict, and the errors."""
    kinds = [row.verdict if row.error is None else "error" for row in rows]
    return {kind: kinds.count(kind) for kind in ("edited", "uncertain", "real", "error")}


def finished(header: Mapping[str, Any], rows: Sequence[ScanRow], seconds: float) -> dict[str, Any]:
    """Return `header` with what is known at the end.

    That is counts, wall time in seconds, and whether every input has its row.
    """
    complete = len(rows) == header["inputs"]
    return {**header, "counts": counts(rows), "seconds": round(seconds, 3), "complete": complete}


def _sentences(limits: Any) -> list[str]:
    """Return limits that a model's record states, as one text or several."""
    if isinstance(limits, str):
        return [limits]
    return [str(each) for each in limits] if isinstance(limits, (list, tuple)) else []
