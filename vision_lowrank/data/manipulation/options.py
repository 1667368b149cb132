"""Options that the manipulation data sets share, and reading a set that lies in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import Field

from ...config.schema import Section
from .base import ManipulationSet, ManipulationSplits
from .splits import SPLITS, ready_splits, split


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


def read_parts(root: Path, name: str, read: Callable[[Path, str], ManipulationSet]) -> dict[str, ManipulationSet]:
    """Read a set's parts in ``root/train``, ``root/val`` and ``root/test`` as `name` says; empty without ``train``.

    Args:
        root: the folder.
        name: of a part below it with {} for the split, such as ``{}.jsonl``.
        read: reads a path under a name.
    """
    places = {each: root / name.format(each) for each in SPLITS}
    if not places["train"].exists():
        return {}
    return {each: read(path, each) for each, path in places.items() if path.exists()}
