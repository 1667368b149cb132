"""Options that the manipulation data sets share, and reading a set that lies in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from ...config.schema import Section
from ..split_names import splits_among, taken_for
from .base import ManipulationSet, ManipulationSplits
from .splits import ready_splits, split


class HeldOut(Section):
    """What training must not see, reported apart as the test set ``unseen``."""

    unseen_editors: tuple[str, ...] = Field(
        (), description="editors kept out of train and val; `closed` = all with closed access"
    )
    leave_out_category: str | None = Field(None, description="kind of edit kept out of train and val")


def splits_of(images: ManipulationSet | Mapping[str, ManipulationSet], config: HeldOut) -> ManipulationSplits:
    """Split one set by source, or take the splits of sets that came in parts named train, test and perhaps val."""
    if isinstance(images, ManipulationSet):
        return split(images, config.unseen_editors, config.leave_out_category)
    return ready_splits(images, config.unseen_editors, config.leave_out_category)


def read_parts(root: Path, ending: str, read: Callable[[Path, str], ManipulationSet]) -> dict[str, ManipulationSet]:
    """Read a set's parts, called ``train``, ``val`` and ``test`` or as usual instead; empty without ``train``.

    Args:
        root: the folder.
        ending: of the parts' names, such as ``.jsonl``; empty for folders.
        read: reads a path under a name.

    Raises:
        DataError: two of them are the same split; or as `read`.
    """
    visible = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    names = [name.removesuffix(ending) for name in visible if name.endswith(ending)]
    found = splits_among(names, f"'{root}'")
    if "train" not in found:
        return {}
    parts = {split: read(root / f"{name}{ending}", split) for split, name in found.items()}
    note = f"ready-made splits: {taken_for(found)}"
    return parts | {"train": replace(parts["train"], notes=(note, *parts["train"].notes))}
