"""Options of ``task: {type: tracking}``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.schema import RunConfig, Section
from ...data.tracking.pair_crops import SearchJitter
from ...errors import UserError
from .augment import Augmentation
from .cropping import Cropping
from .online import Following, TemplateUpdate


class TrackingConfig(Section):
    """LoRAT's settings; sizes are those of its 224 variants."""

    type: Literal["tracking"] = "tracking"
    search_size: int = Field(224, ge=16, le=4096, description="side of the search crop in pixels")
    template_size: int = Field(112, ge=8, le=4096, description="side of the template crop in pixels")
    search_factor: float = Field(4.0, gt=1, le=100, description="sides of the search crop per side of a square target")
    template_factor: float = Field(2.0, ge=1, le=100, description="likewise of the template crop")
    least_side: float = Field(10.0, ge=1, le=1000, description="training: shortest side of a target in a search crop")
    shift_jitter: float = Field(3.0, ge=0, le=10, description="training: how far a target leaves the middle, in sides")
    scale_jitter: float = Field(0.25, ge=0, le=2, description="training: of each axis of a search crop, log-normal")
    flip: float = Field(0.5, ge=0, le=1, description="training: share of crops that are flipped")
    colours: float = Field(0.4, ge=0, lt=1, description="training: most change of brightness, contrast, saturation")
    filters: float = Field(1.0, ge=0, le=1, description="training: share of pairs made grey, solarised or blurred")
    type_std: float = Field(0.02, gt=0, le=10, description="standard deviation that token types start with")
    labels: Literal["iou", "one"] = Field(
        "iou",
        description="training: a cell's true score: its box's overlap; or 1, which says more while boxes are poor",
    )
    gap: int = Field(100, ge=1, le=10**6, description="training: most frames between template and search crop")
    pairs: int = Field(131_072, ge=1, le=10**9, description="training: pairs of an epoch")
    trains_base: bool = Field(False, description="train all of the trunk instead of an adapter")
    test_batch: int = Field(8, ge=1, le=1024, description="clips that are followed side by side")

    templates: int = Field(
        1, ge=1, le=16, description="training: templates of a pair; further ones are of frames near the search crop's"
    )
    update_after: int = Field(
        0, ge=0, le=10**6, description="following: a second template is cut anew after so many sure frames; 0 = never"
    )
    update_score: float = Field(0.6, ge=0, le=1, description="following: the score from which a frame is sure")
    size_rate: float = Field(
        1.0, gt=0, le=1, description="following: share of a change of size that is taken at once; 1 = all"
    )
    vote_iou: float = Field(
        1.0,
        gt=0,
        le=1,
        description="following: cells whose boxes overlap the best one's by so much are averaged with it; 1 = none",
    )

    @property
    def following(self) -> Following:
        """What is done while following beside LoRAT's loop."""
        update = TemplateUpdate(self.update_after, self.update_score) if self.update_after else None
        return Following(update, self.size_rate, self.vote_iou)

    @property
    def augmentation(self) -> Augmentation:
        """How much crops are changed."""
        return Augmentation(self.flip, self.colours, self.filters)

    @property
    def jitter(self) -> SearchJitter:
        """Where search crops lie."""
        size = (self.search_size, self.search_size)
        return SearchJitter(self.search_factor, size, self.least_side, self.scale_jitter, self.shift_jitter)

    @property
    def cropping(self) -> Cropping:
        """The two crops."""
        return Cropping(self.search_size, self.template_size, self.search_factor, self.template_factor)

    def check(self, config: RunConfig) -> None:
        """Refuse a template larger than the search crop, and a base that trains beside an adapter.

        Raises:
            UserError: one of these.
        """
        self.cropping.check()
        if self.trains_base and config.adapter is not None:
            raise UserError("task.trains_base trains the whole trunk: leave `adapter` out, or set it to false.")
