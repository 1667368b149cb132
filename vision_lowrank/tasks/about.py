"""What an artefact says of itself, ``artefact.json``: read without torch, so that a wrong folder is refused at once.

The folder of an adapter alone, as ``vl.save`` writes it, says the same in ``vision_lowrank.json``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import ArtefactError
from ..files import sibling

# What every artefact says, whatever its task.
KEYS = frozenset({"backbone", "fingerprint", "preprocess", "adapter"})
# What lies in the folder of an adapter.
_ADAPTER = "vision_lowrank.json"


def read_about(folder: Path) -> dict[str, Any]:
    """Read ``artefact.json``, whatever the task; for an adapter alone, return what such a file would say of it.

    Raises:
        ArtefactError: the file is missing or not valid, or lacks one of :data:`KEYS`.
    """
    path = folder / "artefact.json"
    if not path.is_file() and (folder / _ADAPTER).is_file():
        return _about_adapter(folder)
    if not path.is_file():
        inside = sorted(str(found.parent) for found in folder.rglob("artefact.json")) if folder.is_dir() else []
        hint = f" Did you mean {inside[0]}?" if inside else "" if folder.is_dir() else sibling(folder)
        raise ArtefactError(f"{folder}: no artefact here (artefact.json is missing).{hint}")
    about = _read(path)
    check_about(folder, about, KEYS)
    return about


def check_about(folder: Path, about: Mapping[str, Any], keys: Collection[str]) -> None:
    """Raise ArtefactError where the ``artefact.json`` of `folder`, read as `about`, lacks one of `keys`."""
    if missing := set(keys) - about.keys():
        path = folder / "artefact.json"
        raise ArtefactError(f"{path}: lacks {', '.join(sorted(missing))}: the artefact is damaged or of another kind.")


def _about_adapter(folder: Path) -> dict[str, Any]:
    path = folder / _ADAPTER
    try:
        place = _read(path)["attachment"]
        backbone = {"name": place["backbone"], "weights": place["weights"], **place["options"]}
        fingerprint = place["fingerprint"]
    except (KeyError, TypeError) as error:
        raise ArtefactError(f"{path}: lacks {error}: the adapter is damaged.") from None
    return {
        "task": "adapter", "backbone": backbone, "fingerprint": fingerprint, "preprocess": None, "adapter": True
    }  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        about = None
    if not isinstance(about, dict):
        raise ArtefactError(f"{path}: not valid JSON: the artefact is damaged.")
    return about
