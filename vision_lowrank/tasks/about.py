"""What an artefact says of itself, ``artefact.json``: read without torch, so that a wrong folder is refused at once."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import ArtefactError
from ..files import sibling

# What every artefact says, whatever its task.
KEYS = frozenset({"backbone", "fingerprint", "preprocess", "adapter"})


def read_about(folder: Path) -> dict[str, Any]:
    """The content of ``artefact.json``, whatever the task.

    Raises:
        ArtefactError: the file is missing or not valid, or lacks one of :data:`KEYS`.
    """
    path = folder / "artefact.json"
    if not path.is_file():
        inside = sorted(str(found.parent) for found in folder.rglob("artefact.json")) if folder.is_dir() else []
        hint = f" Did you mean {inside[0]}?" if inside else "" if folder.is_dir() else sibling(folder)
        raise ArtefactError(f"{folder}: no artefact here (artefact.json is missing).{hint}")
    try:
        about = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        about = None
    if not isinstance(about, dict):
        raise ArtefactError(f"{path}: not valid JSON: the artefact is damaged.")
    check_about(folder, about, KEYS)
    return about


def check_about(folder: Path, about: Mapping[str, Any], keys: Collection[str]) -> None:
    """Raise ArtefactError where the ``artefact.json`` of `folder`, read as `about`, lacks one of `keys`."""
    if missing := set(keys) - about.keys():
        path = folder / "artefact.json"
        raise ArtefactError(f"{path}: lacks {', '.join(sorted(missing))}: the artefact is damaged or of another kind.")
