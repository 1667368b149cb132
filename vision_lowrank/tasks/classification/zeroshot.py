"""Zero-shot classification: class prompts against pictures, nothing trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.schema import RunConfig, Section
from ...data.options import Templates
from ...engine.task import Stage
from ...registry import register
from .base import ClassificationTask, load_frozen, load_splits
from .classifier import ImageClassifier


class ZeroShotConfig(Section):
    """Options of ``task: {type: zeroshot}``."""

    type: Literal["zeroshot"] = "zeroshot"
    templates: Templates | None = Field(None, description="prompt templates instead of the data set's own")


@register("task", "zeroshot", summary="class prompts of a two-tower model, nothing trains", config=ZeroShotConfig)
class ZeroShot(ClassificationTask):
    """Evaluation of a two-tower model by its class prompts alone."""

    adapts = False

    def __init__(self, config: RunConfig, seed: int) -> None:
        splits = load_splits(config)
        classifier = ImageClassifier(
            load_frozen(config, "text"), "text", splits.train.classes, config.task.templates or splits.templates
        )
        super().__init__(classifier, splits, splits.val)

    def stages(self) -> list[Stage]:
        """Return no stages."""
        return []
