"""What ``artefact.json`` says of a tracker."""

from __future__ import annotations

from pydantic import Field

from ...json_files import Closed
from ..about import About


class CroppingAbout(Closed):
    """:class:`.cropping.Cropping` as JSON has it."""

    search: int = Field(ge=1, le=4096)
    template: int = Field(ge=1, le=4096)
    search_factor: float = Field(gt=1, le=100)
    template_factor: float = Field(ge=1, le=100)


class UpdateAbout(Closed):
    """:class:`.online.TemplateUpdate` as JSON has it."""

    frames: int = Field(ge=1, le=10**6)
    score: float = Field(ge=0, le=1)


class FollowingAbout(Closed):
    """:class:`.online.Following` as JSON has it."""

    update: UpdateAbout | None = None
    size_rate: float = Field(1.0, gt=0, le=1)
    vote_iou: float = Field(1.0, gt=0, le=1)


class TrackingAbout(About):
    """What ``artefact.json`` says of a tracker."""

    cropping: CroppingAbout
    following: FollowingAbout = FollowingAbout()
