"""Downloading the pictures of a CoOp data set with torchvision, and linking them to where CoOp has them.

torchvision brings pictures, never CoOp's split files: those must be fetched by hand.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DataError
from .coop_layout import SPLITS, locate
from .coop_sets import CoopSet


def fetch(spec: CoopSet, root: Path) -> None:
    """Download the pictures of a data set below `root` unless its picture folder is there.

    Raises:
        DataError: torchvision cannot download this data set, or failed to.
    """
    place = locate(spec, root)
    if place is not None and place.images is not None:
        return
    if not spec.torchvision:
        raise DataError(f"data set '{spec.key}' cannot be downloaded by torchvision: get it from {spec.page}.")
    from torchvision import datasets  # only here: reading a data set needs no torch

    try:
        getattr(datasets, spec.torchvision)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"data set '{spec.key}': the download failed: {reason}. Try again or see {spec.page}."
        ) from None
    source = root / spec.torchvision_at
    target = place.folder if place is not None and place.split is not None else root / spec.folders[0]
    for name in _needed(spec):
        _link(source / name, target / name)


def _needed(spec: CoopSet) -> list[str]:
    lists = [f"images_variant_{split}.txt" for split in SPLITS]
    return [spec.images[0], *([spec.split, *lists] if spec.source == "variants" else [])]


def _link(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(os.path.relpath(source, target.parent), target_is_directory=source.is_dir())
