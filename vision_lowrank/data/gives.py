"""What data sets give, in words: a part is registered with them, and a task reads data that give what it needs.

=========  =============================================================================
classes    labelled pictures: :class:`~.base.Splits`
captions   and what is true of each picture, in words
edits      real and edited photographs: :class:`~.manipulation.base.ManipulationSplits`
regions    pairs of views with the places that match: split -> :class:`~.regions.RegionPairs`
clips      clips with the box of one object in every frame: :class:`~.tracking.base.ClipSplits`
boxes      and the boxes and classes of all objects: each clip's `scene` is a :class:`~.scenes.scene.Scene`
masks      and their pixels, of the same scene
=========  =============================================================================
"""

from __future__ import annotations

from typing import Any

from ..config.schema import Section
from ..errors import UserError
from ..registry import registry


def read_data(section: Section, wanted: str) -> Any:
    """Read the data set of a checked ``data:`` section.

    Args:
        section: its ``type`` names a registered data set.
        wanted: the word for what is needed.

    Raises:
        UserError: the data set gives something else; the message lists those that give it.
    """
    part = registry.get("data", section.type)
    if wanted not in part.gives.split():
        others = [each.name for each in registry.list("data") if wanted in each.gives.split()]
        raise UserError(
            f"data '{part.name}' gives {' and '.join(part.gives.split()) or 'nothing that it was registered with'}, "
            f"but {wanted} are needed here: take one of {', '.join(others) or 'none known'}."
        )
    return part.target(section)
